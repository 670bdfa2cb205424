"""top, doctor, config, completion and the documented JSON keys, against a real daemon with real workers."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import offrl
from offrl import doctor, wire
from offrl.cli.top import meter, sparkline

DOCS = Path(__file__).resolve().parents[2] / "docs" / "status.md"
MODELS = {
    "Job": wire.JobInfo, "Overview": wire.OverviewInfo, "Pause": wire.Pause, "Queue": wire.QueueInfo, "History": wire.History,
    "Machine": wire.MachineInfo, "Gpu": wire.Gpu,
    "Dataset": wire.DatasetInfo, "SkippedEpisode": wire.SkippedEpisode, "Check": wire.Check, "Setting": wire.Setting,
}  # fmt: skip
WAIT_S = 100


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    ends = np.zeros(100, bool)
    ends[24::25] = True
    return {
        "observations": random.normal(size=(100, 4)).astype(np.float32),
        "actions": random.integers(0, 2, 100).astype(np.int64),
        "rewards": np.ones(100, np.float32),
        "terminals": np.zeros(100, bool),
        "timeouts": ends,
    }


@pytest.fixture(scope="module")
def running(client):
    """A job that runs until the module's tests are done."""
    client.datasets.add("care-data", arrays())
    job = client.submit("discrete_bc", dataset="care-data", steps=10**9, runner="eager")
    end = time.monotonic() + WAIT_S
    while not job.info().metrics:
        assert time.monotonic() < end
        time.sleep(0.1)
    yield job
    job.cancel()
    job.wait(WAIT_S, check=False)
    job.rm()
    client.datasets.rm("care-data")


def test_the_spare_worker_is_told_of_as_starting_and_then_ready(own_daemon) -> None:
    with offrl.Client(own_daemon.start().url) as client:
        seen, end = [client.overview().spare], time.monotonic() + WAIT_S
        while seen[-1] != "ready":
            assert time.monotonic() < end, seen
            time.sleep(0.05)
            seen.append(client.overview().spare)
    assert set(seen) <= {None, "starting", "ready"}
    assert "starting" in seen  # loading torch takes longer than a look


# ------------------------------------------------------------------------------- doctor, while no other job has the only slot
def left_behind(client) -> tuple[list[str], list[str]]:
    return [job.id for job in client.jobs("all")], [each.name for each in client.datasets.ls()]


def test_the_doctor_goes_from_the_socket_to_a_policy_and_leaves_nothing(client, daemon):
    before = left_behind(client)
    checks: list[wire.Check] = []
    versions = doctor.examine(lambda: offrl.Client(daemon.url), checks.append, train_s=1.0)
    assert [check.name for check in checks][-3:] == ["import", "training", "policy"]
    assert {check.status for check in checks} <= {"ok", "warn"}, checks
    assert not [check for check in checks if check.status == "ok" and check.hint]
    [training] = [check for check in checks if check.name == "training"]
    assert re.search(r"^[\d,]+ updates/s of td3_bc", training.message)
    assert versions["daemon"]["offrld"] == client.ping().version
    assert versions["worker"]["torch"]
    assert left_behind(client) == before
    assert not [name for name in os.listdir(daemon.state_dir / "jobs") if name not in before[0]]


# ----------------------------------------------------------------------------------------------------------------- documented
def in_words(annotation: Any) -> str:
    """The type as the tables name it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin is list:
        return f"list of {in_words(arguments[0])}"
    if origin is dict:
        return "table"
    if origin is typing.Literal or annotation is offrl.job.JobState:
        return "text"
    models = {model: name for name, model in MODELS.items()}
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    return {**names, **models}[annotation]


def test_every_key_is_documented_with_its_type():
    sections = dict(re.findall(r"^##+ (\w+)$\n(.*?)(?=^##|\Z)", DOCS.read_text(), re.M | re.S))
    assert set(sections) == set(MODELS)
    for name, model in MODELS.items():
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.+?) \|$", sections[name], re.M)
        documented = {key: kind for key, kind, _ in rows}
        assert len(documented) == len(rows), name
        assert documented == {key: in_words(field.annotation) for key, field in model.model_fields.items()}, name


def test_what_is_printed_has_just_the_documented_keys(running, offrl_cli):
    job = offrl_cli("status", running.id, "--json").json
    assert set(job) == set(wire.JobInfo.model_fields)
    assert all(set(each) == set(job) for each in offrl_cli("status", "--json").json)
    top = offrl_cli("top", "--json").json
    assert set(top) == set(wire.OverviewInfo.model_fields)
    assert set(top["machine"]) == set(wire.MachineInfo.model_fields)
    assert set(top["jobs"][0]) == set(job)
    assert set(top["history"][running.id]) == set(wire.History.model_fields)
    config = offrl_cli("config", "--json").json
    assert set(config) == {"file", "settings"}
    assert all(set(each) == set(wire.Setting.model_fields) for each in config["settings"])


# ------------------------------------------------------------------------------------------------------------------------ top
def test_top_is_printed_once_where_there_is_no_terminal(running, offrl_cli):
    ran = offrl_cli("top")
    assert (ran.status, ran.err) == (0, "")
    line = next(line for line in ran.out.splitlines() if line.startswith(running.id))
    assert "running" in line
    assert "discrete_bc" in line
    assert any(bar in line for bar in "▁▂▃▄▅▆▇█")
    assert {"cpu", "memory", "disk"} <= {line.split()[0] for line in ran.out.splitlines() if line}
    assert "updates_per_second" in offrl_cli("top", "--once", "--metric", "updates_per_second").out
    assert offrl_cli("top", "--interval", "0").status == 2


def in_terminal(url: str, *arguments: str) -> tuple[psutil.Popen, int]:
    """A command in a terminal of its own, 30 lines of 120 characters, and the other end of that terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    environment = {**os.environ, "OFFRL_URL": url, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):  # they would stand in place of the terminal's own size
        environment.pop(name, None)
    process = psutil.Popen(
        [sys.executable, "-m", "offrl.cli", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may themselves run where it is ignored
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, wanted: str, seconds: float = 30.0) -> str:
    """What the terminal shows up to the wanted text."""
    shown, end = "", time.monotonic() + seconds
    while wanted not in shown:
        assert time.monotonic() < end, shown[-3000:]
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown


def end_of(process: psutil.Popen, terminal: int) -> int:
    """The exit status of a command that is about to end; what it still writes is read, else it would wait for that."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # it has gone, and its terminal with it
                os.read(terminal, 65536)
    return process.wait(60)


def test_top_lives_in_a_terminal_until_q(running, daemon):
    process, terminal = in_terminal(daemon.url, "top", "--interval", "1")
    try:
        read_until(terminal, running.id)
        begun = process.cpu_times()
        at = time.monotonic()
        read_until(terminal, running.id)
        read_until(terminal, running.id)
        read_until(terminal, running.id)
        used = sum(process.cpu_times()[:2]) - sum(begun[:2])
        share = used / (time.monotonic() - at)
        assert share < 0.1, share  # looking once a second, on a busy machine
        os.write(terminal, b"q")
        assert end_of(process, terminal) == 0
    finally:
        if process.poll() is None:
            process.kill()
        os.close(terminal)


def test_top_goes_on_when_the_daemon_comes_back(own_daemon):
    process, terminal = in_terminal(own_daemon.start().url, "top", "--interval", "0.2")
    try:
        read_until(terminal, "q quits")
        own_daemon.stop()
        read_until(terminal, "no daemon at")
        own_daemon.start()
        read_until(terminal, "q quits")
        process.send_signal(signal.SIGINT)
        assert end_of(process, terminal) == 130
    finally:
        if process.poll() is None:
            process.kill()
        os.close(terminal)


def test_a_sparkline_follows_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▅▅"
    assert sparkline([]) == ""
    falling = sparkline([float(-value) for value in range(1000)], width=8)
    assert falling == "█▇▆▅▄▃▂▁"
    assert (meter(50, 4), meter(None, 4), meter(120, 4)) == ("[##  ]  50%", "[    ]   ?%", "[####] 120%")


# --------------------------------------------------------------------------------------------------------------------- doctor
def test_the_doctor_cleans_up_behind_a_job_that_cannot_start(client, daemon, running, monkeypatch):
    """The only slot is taken: no fault of the service, and the waiting job is taken back."""
    monkeypatch.setattr(doctor, "START_S", 1.0)
    before = left_behind(client)
    checks: list[wire.Check] = []
    doctor.examine(lambda: offrl.Client(daemon.url), checks.append, train_s=1.0)
    [training] = [check for check in checks if check.name == "training"]
    assert training.status == "warn"
    assert "slots" in training.message
    assert left_behind(client) == before


def test_the_doctor_on_the_command_line(offrl_cli, nowhere, monkeypatch, daemon):
    monkeypatch.setenv("OFFRL_URL", daemon.url)
    ran = offrl_cli("doctor", "--no-train")
    assert ran.status == 0
    assert all(re.match(r"(ok  |warn|fail)  [\w ]+: \S", line) for line in ran.out.splitlines()), ran.out
    told = offrl_cli("doctor", "--no-train", "--json").json
    assert told["ok"] is True
    assert {"round trip", "clock", "permissions", "socket", "disk space", "disk speed", "database", "device", "kernels"} <= {
        check["name"] for check in told["checks"]
    }
    monkeypatch.delenv("OFFRL_URL")
    ran = offrl_cli("doctor", "--json")
    assert ran.status == 1
    assert ran.json["ok"] is False
    [check] = [check for check in ran.json["checks"] if check["status"] == "fail"]
    assert check["name"] == "daemon"
    assert "offrl serve" in check["hint"]


@pytest.mark.slow
def test_the_doctor_trains_for_ten_seconds(offrl_cli):
    began = time.monotonic()
    ran = offrl_cli("doctor")
    assert ran.status == 0, ran.out
    assert time.monotonic() - began > doctor.TRAIN_S


def test_a_clock_that_is_off_is_named(client, monkeypatch):
    assert doctor._clock(client).status == "ok"
    real = time.time
    for away, status in ((30.0, "warn"), (-30.0, "warn"), (4000.0, "fail")):
        monkeypatch.setattr(doctor.time, "time", lambda away=away: real() + away)
        check = doctor._clock(client)
        assert check.status == status
        assert f"{abs(away):.0f}" in check.message
        assert "set-ntp" in check.hint


# --------------------------------------------------------------------------------------------------------------------- config
def test_config_shows_the_settings_and_makes_a_file(offrl_cli, nowhere, daemon, monkeypatch, tmp_path):
    monkeypatch.setenv("OFFRL_URL", daemon.url)
    ran = offrl_cli("config")
    assert "state_dir" in ran.out
    assert "command line" in ran.out
    assert str(daemon.state_dir) in ran.out
    monkeypatch.delenv("OFFRL_URL")
    text = offrl_cli("config", "--default").out
    assert "[slots]" in text
    assert offrl_cli("config", "--default", "--json").json == {"toml": text}
    file = tmp_path / "offrld.toml"
    file.write_text(text)
    command = [sys.executable, "-m", "offrld.daemon.main", "--config", str(file), "--check-config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert offrl_cli("config").status == 3


# ----------------------------------------------------------------------------------------------------------------- completion
def completed(shell: str, words: str, url: str, patience_s: float | None = 60.0) -> list[str]:
    """What the shell is offered for the words typed so far (a blank at the end: the next word).

    ``patience_s``: longer than the product's own, so that a busy machine offers the same; None: the product's.
    """
    patience = "" if patience_s is None else f"from offrl.cli import completion; completion.PATIENCE_S = {patience_s}; "
    program = f"import sys; sys.argv[0] = 'offrl'; {patience}from offrl.cli import main; main()"
    typed = words.split()
    environment = {**os.environ, "OFFRL_URL": url, "_OFFRL_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(typed) - (not words.endswith(" ")))}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def test_the_shell_is_offered_jobs_datasets_and_algorithms(running, client, daemon):
    client.algos()  # the daemon has its list now
    assert running.id in completed("bash", "offrl cancel ", daemon.url)
    assert completed("bash", f"offrl status {running.id[:6]}", daemon.url) == [running.id]
    assert completed("bash", "offrl datasets show care-", daemon.url) == ["care-data"]
    assert completed("bash", "offrl submit td3_", daemon.url) == ["td3_bc"]
    assert completed("bash", "offrl submit td3_bc --dataset care", daemon.url) == ["care-data"]
    assert {"top", "doctor", "config"} <= set(completed("bash", "offrl ", daemon.url))
    assert "--interval" in completed("bash", "offrl top --", daemon.url)
    assert any(line.startswith(running.id) and "discrete_bc" in line for line in completed("fish", "offrl wait ", daemon.url))
    assert any(running.id in line for line in completed("zsh", "offrl wait ", daemon.url))


def test_without_a_daemon_that_answers_nothing_is_offered_and_nothing_is_said(daemon, tmp_path):
    assert completed("bash", "offrl cancel ", "ipc:///nonexistent/a.sock") == []
    path = str(tmp_path / "deaf.sock")
    with socket.socket(socket.AF_UNIX) as deaf:  # takes connections and says nothing
        deaf.bind(path)
        deaf.listen()
        idle = time.monotonic()
        completed("bash", "offrl cancel ", "ipc:///nonexistent/a.sock", None)
        idle = time.monotonic() - idle
        began = time.monotonic()
        assert completed("bash", "offrl cancel ", f"ipc://{path}", None) == []
        assert time.monotonic() - began < idle + 20.0  # 0.3 s, and what a busy machine adds; a request waits for 60 s


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell):
    program = "import sys; sys.argv[0] = 'offrl'; from offrl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "_OFFRL_COMPLETE": f"source_{shell}"},
        timeout=120,
        check=False,
    )
    assert f"complete_{shell}" in done.stdout
    assert done.returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_itself_completes_a_job(running, daemon, tmp_path):
    program = "import sys; sys.argv[0] = 'offrl'; from offrl.cli import main; main()"
    (tmp_path / "offrl").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}" "$@"\n')
    (tmp_path / "offrl").chmod(0o755)
    script = f"""
        eval "$(_OFFRL_COMPLETE=source_bash offrl)"
        COMP_WORDS=(offrl cancel {running.id[:5]}); COMP_CWORD=2
        _offrl_completion offrl
        echo "${{COMPREPLY[0]}}"
    """
    environment = {**os.environ, "OFFRL_URL": daemon.url, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert (done.stdout.strip(), done.stderr) == (running.id, "")


def test_the_clients_own_methods(running, client):
    told = client.overview(limit=3, points=4)
    assert told.jobs[0].job == running.id
    assert len(told.history[running.id].values) <= 4
    assert {setting.name for setting in client.settings().settings} >= {"slots.train", "metrics_port", "log_format"}
    with pytest.raises(offrl.errors.InvalidInput):
        client.overview(limit=0)
    assert json.loads(told.model_dump_json())
