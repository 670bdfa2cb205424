"""What reaches a terminal: nothing out of data, names, notes or logs can command it, and every command prints through one place."""

from __future__ import annotations

import ast
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import offrl
from offrl import printable
from offrl.cli import output, progress
from offrl.errors import InvalidInput

EVIL = "\x1b]0;PWNED\x07\x1b[2J\x9b31m\u202eevil\u2066\x7f[red]:smile:[/]"
CLI = Path(offrl.__file__).parent / "cli"


def harmless(text: str) -> bool:
    """Without a sign that a terminal obeys, but for line ends and tabs."""
    return not any(c in "\x7f\u202e\u2066" or (ord(c) < 32 and c not in "\n\t") or 0x80 <= ord(c) < 0xA0 for c in text)


def test_control_characters_and_marks_of_direction_are_escaped():
    assert printable.line("a\x1b[31m\tb\nc\x7f\x9b\u202e\udcff") == "a\\x1b[31m\\tb\\nc\\x7f\\x9b\\u202e\\udcff"
    assert printable.block("10%\r20%\r\n\tdone\x07\n") == "10%\n20%\n\tdone\\x07\n"
    assert printable.line("père 観測 🤖 [red]") == "père 観測 🤖 [red]"


@pytest.mark.parametrize(
    "print_it",
    [
        lambda: output.say(EVIL),
        lambda: output.talk(EVIL),
        lambda: output.write(f"{EVIL}\n"),
        lambda: output.pairs([(EVIL, EVIL)]),
        lambda: output.table([EVIL, "b"], [[EVIL, EVIL]]),
        lambda: output.emit({EVIL: EVIL}),
    ],
)
def test_every_way_of_printing_is_harmless(print_it, capfd):
    print_it()
    out, err = capfd.readouterr()
    assert harmless(out + err)
    assert "PWNED" in out + err


def test_commands_print_through_that_place_alone():
    for path in CLI.glob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in ("print", "sys.stdout.write", "sys.stderr.write", "typer.echo", "typer.secho"), (path.name, node.lineno)


def on_terminal(arguments: list[str], env: dict[str, str], columns: int = 80) -> tuple[int, str]:
    """A command with stdin, stdout and stderr on a terminal; its exit status and all that it wrote."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40", **env}
    process = subprocess.Popen([sys.executable, "-m", "offrl.cli", *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    return process.wait(60), b"".join(parts).decode()


@pytest.fixture(scope="module")
def evil_import(daemon, tmp_path_factory) -> str:
    """The job that imported a file whose field names hold escape sequences."""
    file = tmp_path_factory.mktemp("evil") / "evil.h5"
    with h5py.File(file, "w") as data:
        data["observations"] = np.zeros((20, 3), np.float32)
        data["actions"] = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
        data["rewards"] = np.ones(20, np.float32)
        data["terminals"] = np.arange(20) % 10 == 9
        data[EVIL.replace("/", "|")] = np.zeros(3)
    with offrl.Client(daemon.url) as client:
        client.datasets.add("evil", file)
        return next(job.id for job in client.jobs("import") if job.last.dataset == "evil")


def test_a_log_full_of_escapes_is_harmless(evil_import, offrl_cli):
    for arguments in (["logs", evil_import], ["logs", evil_import, "--follow"], ["logs", evil_import, "--json"]):
        ran = offrl_cli(*arguments)
        assert ran.status == 0
        assert "PWNED" in ran.out
        assert harmless(ran.out + ran.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", EVIL],
        ["logs", EVIL],
        ["datasets", "show", EVIL],
        ["datasets", "add", EVIL, EVIL],
        ["submit", EVIL, "--dataset", EVIL],
        ["submit", "bc", "--dataset", "evil", "--set", EVIL],
        ["submit", "bc", "--dataset", "evil", "--eval-env", EVIL],
        [EVIL],
        [f"--{EVIL}"],
        ["collect", "--env", EVIL, "--into", "x", "--steps", "1"],
        ["top", "--interval", EVIL],
        ["audit", "--since", EVIL],
        ["sweep", EVIL],
        ["evaluate", EVIL],
        ["spool", "show", EVIL],
        ["keys", "rm", EVIL],
        ["restore", EVIL],
        ["config", EVIL],
    ],
)
def test_an_error_about_an_evil_argument_is_one_harmless_line(arguments, evil_import, offrl_cli, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = offrl_cli(*arguments)
    assert ran.status == 2
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert harmless(ran.out + ran.err)


def test_what_an_operator_notes_is_harmless_in_every_list(offrl_cli, client):
    note = EVIL.replace("\x7f", "")
    client.pause_queue(note)
    try:
        for arguments in (["queue", "status"], ["status"], ["top", "--once"], ["audit"], ["status", "--kind", "all"], ["datasets", "ls"]):
            ran = offrl_cli(*arguments)
            assert ran.status == 0, ran.err
            assert harmless(ran.out + ran.err)
        status, text = on_terminal(["queue", "status"], {"OFFRL_URL": client.url})
        assert status == 0
        assert "[red]:smile:[/]" in text
        assert harmless(text.replace("\r\n", "\n"))
    finally:
        client.resume_queue()


def test_markup_and_emoji_in_events_are_shown_as_they_are():
    """In a process of its own on a terminal, by rich: "[red]" is neither a colour nor left out."""
    code = (
        "from types import SimpleNamespace as E\nfrom offrl.cli import progress\n"
        "with progress.display('[red]label[/] :smile:') as see:\n"
        "    see(E(type='message', message='[bold]text[/bold] :smile: \\x1b]0;X\\x07'))\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    text = b""
    while True:
        try:
            text += os.read(master, 65536)
        except OSError:
            break
    assert process.wait(60) == 0
    assert b"[bold]text[/bold] :smile: \\x1b]0;X\\x07" in text
    assert b"[red]label[/] :smile:" in text


def test_a_dumb_terminal_gets_plain_lines(daemon):
    for arguments in (["status", "--kind", "all"], ["top"], ["algos"], ["config"]):
        status, text = on_terminal(arguments, {"TERM": "dumb", "OFFRL_URL": daemon.url})
        assert status == 0
        assert "\x1b" not in text


# ------------------------------------------------------------------------------------------------------------- narrow terminals
JOBS = [["q1w2e3r4", "succeeded", "discrete_cql", "pendulum-replay-long", "100,000/100,000", "1,234", "1:23:45",
         "return_mean -1,234  critic_loss 0.0609  and more"],
        ["a1s2d3f4", "failed", "td3_bc", "d", "0/2,000", "", "", "checkpoint is outside the bounds -2.0 to 2.0 " * 4]]  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_id_and_state_are_never_cut(width):
    from io import StringIO

    from rich.console import Console

    from offrl.cli import jobs, top

    bar = "[############] 100%" if width >= top.BARS_FROM else "100%"
    for headers, drop, right, rows in (
        (jobs.HEADERS, jobs.DROP, jobs.RIGHT, JOBS),
        (top.HEADERS, top.DROP, top.RIGHT, [[*row[:4], bar, *row[4:]] for row in JOBS]),
    ):
        file = StringIO()
        Console(file=file, width=width).print(output.rich_table(headers, rows, width, right=right, drop=drop))
        lines = [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]
        assert len(lines) == 4  # headers, a rule, two jobs: each on one line
        assert all(len(line) <= width for line in lines)
        assert "q1w2e3r4" in lines[2] and "succeeded" in lines[2] and "failed" in lines[3]
        if headers is top.HEADERS:
            assert "100%" in lines[2]


def test_a_table_without_columns_to_drop_wraps_its_texts():
    from io import StringIO

    from rich.console import Console

    file = StringIO()
    meaning = "what is said here is longer than one line of a narrow terminal can hold, by far"
    Console(file=file, width=60).print(output.rich_table(["setting", "value", "meaning"], [["slots.train", "1", meaning]], 60))
    assert " ".join(file.getvalue().split()).count("…") == 0
    assert all(word in file.getvalue() for word in meaning.split())


def test_a_bar_on_a_narrow_terminal_keeps_the_label_and_the_share():
    event = SimpleNamespace(type="progress", step=1831, steps=2000, updates_per_second=46.27, eta_s=4, metrics={"critic_loss": {"0": 0.06}})
    assert progress.said(event, event.metrics).startswith("91%  1,831/2,000  ")
    assert progress._cut("91%  1,831/2,000  46.27 updates/s", 10) == "91%  1,83…"


def test_a_command_waits_for_a_daemon_that_is_starting(own_daemon, tmp_path):
    """A process that has the state folder's lock, and listens a little later."""
    started = own_daemon.start()
    state = started.state_dir
    own_daemon.stop()
    lock = state / "run" / "offrld.lock"
    lock.write_text(f"{os.getpid()}\n")  # a process that lives, but is not a daemon: it is not waited for
    command = [sys.executable, "-m", "offrl.cli", "ping"]
    environment = {**os.environ, "OFFRLD_STATE_DIR": str(state)}
    environment.pop("OFFRL_URL", None)
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode == 3
    fake = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", "offrld"])
    try:
        lock.write_text(f"{fake.pid}\n")
        waiting = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert "starting" in waiting.stderr.readline()
        own_daemon.start_at(state)
        out, _ = waiting.communicate(timeout=180)
        assert waiting.returncode == 0 and "offrld" in out
    finally:
        fake.kill()
        fake.wait()


def test_an_unknown_environment_is_not_guessed_at(offrl_cli):
    ran = offrl_cli("collect", "--env", "Zzyzx-v9", "--into", "x", "--steps", "1")
    assert ran.status == 2
    assert "did you mean" not in ran.err


def test_output_to_stdout_is_refused_on_a_terminal_and_beside_json(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(InvalidInput, match="is not text, and stdout is a terminal"), output.destination("-", "x", "a policy", False):
        pass
    with pytest.raises(InvalidInput, match="both are for stdout"), output.destination("-", "x", "a policy", True):
        pass
