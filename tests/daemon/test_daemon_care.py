"""What the daemon reports about itself: the overview, its checks, its settings."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from daemon_harness import HERE, Daemon, until

from offrl import keys, wire
from offrl.errors import Unknown
from offrld.daemon import settings_list
from offrld.daemon.config import Settings, dotted, load, load_with_sources
from offrld.daemon.health import checkup
from offrld.daemon.health.machine import GPU_WAIT_S, parse_cards
from offrld.daemon.queue.database import connect
from offrld.state.folder import StateFolder

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


# ------------------------------------------------------------------------------------------------------------------- overview
def test_the_overview_has_the_running_ones_the_queue_in_its_order_and_the_last_that_ended(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[slots]\ntrain = 1\n[grace]\ncancel_s = 0.2\npause_s = 0.2\nstop_s = 1\n").start()
    daemon.dataset("a")
    ended = [daemon.train("a") for _ in range(3)]
    for job in ended:
        daemon.wait(job)
    running = daemon.train("a", "slow", steps=100_000)
    until(lambda: daemon.job(running).step > 5)
    first, second = daemon.train("a", "hang"), daemon.train("a", "hang")
    urgent = daemon.train("a", "hang", priority=5)
    paused = daemon.train("a", "hang")
    daemon.control(paused, "pause")
    told = daemon.ask(wire.Overview())
    assert [job.job for job in told.jobs[:5]] == [running, urgent, first, second, paused]
    assert [job.job for job in told.jobs[5:8]] == ended[::-1]
    assert told.counts == {"running": 1, "queued": 3, "paused": 1, "succeeded": 4}
    assert told.left_off == 0
    assert all(job.spec == {} and job.owner == "local" for job in told.jobs)
    assert abs(told.time - time.time()) < 60
    assert told.spare in (None, "ready", "starting")
    few = daemon.ask(wire.Overview(limit=2))
    assert [job.job for job in few.jobs] == [running, urgent]
    assert few.left_off == 3
    machine = told.machine
    assert machine.cpus == len(os.sched_getaffinity(0))
    disk = shutil.disk_usage(daemon.state)
    assert machine.disk_bytes == disk.total
    assert abs(machine.disk_free_bytes - disk.free) < disk.total / 10
    assert 0 < machine.memory_free_bytes < machine.memory_bytes
    later = until(lambda: (found := daemon.ask(wire.Overview()).machine).cpu_percent is not None and found)
    assert 0 <= later.cpu_percent <= 100
    assert 0 <= later.daemon_cpu_percent <= 100


def test_a_curve_shows_the_requested_metric(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[grace]\nstop_s = 1\n").start()
    daemon.dataset("a")
    job = daemon.train("a", "slow", steps=100_000)
    metrics = until(lambda: daemon.job(job).metrics)
    until(lambda: daemon.job(job).step > 20)
    told = daemon.ask(wire.Overview(points=5)).history[job]
    assert told.metric in metrics
    assert len(told.values) == len(told.steps) == 5
    assert told.steps == sorted(told.steps)
    progress = {event.step: event.metrics.get(told.metric) for event in daemon.events(job) if event.type == "progress"}
    for step, value in zip(told.steps, told.values, strict=True):
        assert value == pytest.approx(sum(progress[step].values()) / len(progress[step]))
    assert daemon.ask(wire.Overview(metric="no such thing")).history == {}
    assert daemon.ask(wire.Overview(metric="a\"b')--")).history == {}  # no way into the query


def test_a_card_is_shown_and_a_hung_driver_delays_nobody(
    new_daemon: Callable[..., Daemon], folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = folders()
    smi = tools / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H200, 41, 1024, 144384, 35, 120.50'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    daemon = new_daemon().start()
    [card] = daemon.ask(wire.Overview()).machine.gpus
    assert (card.name, card.percent, card.memory_bytes, card.memory_used_bytes) == ("NVIDIA H200", 41, 144384 << 20, 1 << 30)
    daemon.stop()
    smi.write_text("#!/bin/sh\nexec sleep 1000\n")
    daemon = new_daemon().start()
    assert daemon.ask(wire.Overview()).machine.gpus == []  # the first look waits a moment for it, later ones do not
    began = time.monotonic()
    for _ in range(20):
        daemon.ask(wire.Overview())
    assert time.monotonic() - began < 10 * GPU_WAIT_S
    [asking] = [child for child in psutil.Process(daemon.process.pid).children() if child.name() == "sleep"]  # not the spare worker
    assert daemon.stop() == 0  # nor is it waited for at the end
    assert until(lambda: not asking.is_running())


def test_figures_that_nvidia_smi_lacks_are_none() -> None:
    found = parse_cards("0, NVIDIA GB10, 5, [N/A], [N/A], 40, [N/A]\nNo devices were found\n1, B, 1, 2, 3, 4, 5\n")
    assert [card.index for card in found] == [0, 1]
    assert (found[0].memory_bytes, found[0].power_w, found[0].temperature_c) == (None, None, 40)
    assert found[1].memory_bytes == 3 << 20


# -------------------------------------------------------------------------------------------------------------------- checkup
def statuses(checks: list[wire.Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_a_sound_daemon_passes_its_checks(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon().start()
    told = daemon.ask(wire.Checkup())
    wanted = {"permissions", "socket", "confinement", "disk space", "disk speed", "database", "queue"}
    assert set(statuses(told.checks)) == wanted
    assert "fail" not in statuses(told.checks).values(), told.checks
    assert told.versions["sqlite"] == sqlite3.sqlite_version
    assert not list((daemon.state / "cache").glob(".checkup-*"))


def test_a_worker_checks_the_devices(new_daemon: Callable[..., Daemon]) -> None:
    import torch

    told = new_daemon().start().ask(wire.Checkup(part="devices"), 100)
    assert told.versions["torch"] == torch.__version__
    assert {"device", "kernels", "onnx"} <= set(statuses(told.checks))
    assert "fail" not in statuses(told.checks).values(), told.checks


def test_a_worker_that_cannot_load_torch_is_a_failed_check(folders: Callable[[], Path]) -> None:
    broken = folders()
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": f"{broken}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-m", "offrld.worker.devices"], capture_output=True, env=environment, timeout=180, check=True)
    told = json.loads(done.stdout)
    [failed] = [check for check in told["checks"] if check["status"] == "fail"]
    assert "libcudart" in failed["message"]
    assert {check["name"] for check in told["checks"]} >= {"torch", "kernels", "onnx"}


def test_wrong_permissions_and_settings_are_found(folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = folders() / "state"
    state = StateFolder(root)
    state.prepare()
    settings = load(str(root), "ipc:///nonexistent/a.sock", None)
    found = statuses(checkup.service(state, settings))
    assert found["socket"] == "fail"
    assert found["permissions"] == "ok"
    keys.add(root, "arm1", keys.server_pair(root).public, "reader")
    assert statuses(checkup.permissions(state, settings))["permissions"] == "ok"
    listed = keys.clients_dir(root) / "arm1.toml"
    for file, mode, what in ((keys.server_file(root), 0o644, "can be read"), (listed, 0o620, "can be changed")):
        file.chmod(mode)
        wrong = checkup.permissions(state, settings)[0]
        assert (wrong.status, wrong.message, wrong.hint) == ("fail", f"{file} {what} by others", f"chmod 600 {file}")
        file.chmod(0o600)
    root.chmod(0o777)
    assert statuses(checkup.permissions(state, settings))["permissions"] == "warn"
    root.chmod(0o700)
    full = settings.model_copy(update={"uploads": settings.uploads.model_copy(update={"keep_free_bytes": 1 << 60})})
    assert checkup.space(state, full).status == "fail"
    assert checkup.speed(root / "cache" / "not-there").status == "fail"


def test_a_damaged_database_is_found(folders: Callable[[], Path]) -> None:
    path = folders() / "queue.sqlite"
    db = connect(path)
    for number in range(2000):
        db.execute("INSERT INTO datasets VALUES (?, ?, 's', 'j', 0)", (f"n{number}", "x" * 200))
    assert checkup.database(db).status == "ok"
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(20_000))
    db = connect(path)
    found = checkup.database(db)
    db.close()
    assert found.status == "fail"
    assert "backup" in found.hint


# ------------------------------------------------------------------------------------------------------------------- settings
def test_every_setting_is_listed_with_its_source(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon('log_level = "warning"\n[slots]\ntrain = 3\n').start()
    told = {setting.name: setting for setting in daemon.ask(wire.GetSettings()).settings}
    assert (told["slots.train"].value, told["slots.train"].default, told["slots.train"].source) == (3, "auto", "file")
    assert (told["log_level"].value, told["log_level"].source) == ("warning", "file")
    assert (told["state_dir"].value, told["state_dir"].source) == (str(daemon.state), "command line")
    assert (told["slots.light"].value, told["slots.light"].source) == (1, "default")
    assert all(setting.help and setting.type for setting in told.values())


def test_a_setting_from_the_environment_is_listed_as_such(folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders()
    monkeypatch.setenv("OFFRLD_STATE_DIR", str(folder))
    settings, sources = load_with_sources(None, None, None)
    told = {setting.name: setting for setting in settings_list.listing(settings, sources)}
    assert told["state_dir"].source == "environment"
    assert sources.file == folder / "offrld.toml"


def test_the_default_file_loads_to_the_defaults_and_has_every_setting(folders: Callable[[], Path]) -> None:
    folder, empty = folders(), folders()
    text = settings_list.default_toml()
    (folder / "offrld.toml").write_text(text)
    loaded, sources = load_with_sources(str(folder), "ipc:///x.sock", None)
    plain = load(str(empty), "ipc:///x.sock", None)
    assert loaded.model_dump(exclude={"state_dir"}) == plain.model_dump(exclude={"state_dir"})
    names = {name for name, _ in settings_list.fields(Settings)}
    optional = {name for name, field in settings_list.fields(Settings) if not field.is_required() and field.get_default() is not None}
    assert set(dotted(tomllib.loads(text))) == optional
    assert set(sources.of) - {"state_dir", "bind"} == optional
    assert all(f"\n{name} = " in text or f"\n# {name} = " in text for name in (name.rpartition(".")[2] for name in names))


def test_operations_has_every_setting_with_its_default() -> None:
    [block] = [part.split("```")[0] for part in OPERATIONS.read_text().split("```toml\n")[1:] if "[slots]" in part.split("```")[0]]
    documented = dotted(tomllib.loads(block))
    for name, field in settings_list.fields(Settings):
        assert name in documented or field.default is None, name
        if not field.is_required() and name in documented:
            assert documented.pop(name) == field.get_default(call_default_factory=True), name
    assert set(documented) == {"state_dir", "bind"}


def program(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "daemon_program.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_the_settings_can_be_checked_without_a_start(folders: Callable[[], Path]) -> None:
    folder = folders()
    (folder / "offrld.toml").write_text("[slots]\ntrain = 2\n")
    good = program("--check-config", "--state-dir", str(folder))
    assert (good.returncode, good.stderr) == (0, "")
    assert f"{folder}/offrld.toml: good" in good.stdout
    assert os.listdir(folder) == ["offrld.toml"]  # nothing was begun
    (folder / "offrld.toml").write_text("[slots]\ntrian = 2\n")
    bad = program("--check-config", "--state-dir", str(folder))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "'slots.trian'" in bad.stderr
    assert "did you mean 'train'?" in bad.stderr
    with pytest.raises(Unknown):
        load(str(folder), None, None)
    printed = program("--print-config", "--state-dir", str(folders()))
    assert wire.SettingList.model_validate_json(printed.stdout).settings
    assert program("--default-config").stdout == settings_list.default_toml()
