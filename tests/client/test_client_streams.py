"""Streams that are closed, full, or not read any more: one line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from offrl.streams import READER_GONE

COMMANDS = [
    ["--help"],
    ["--version"],
    ["ping"],
    ["status"],
    ["status", "--json"],
    ["top", "--once"],
    ["algos"],
    ["algos", "bc"],
    ["config"],
    ["config", "--default"],
    ["datasets", "ls"],
    ["queue", "status"],
    ["audit"],
    ["doctor", "--no-train"],
]


def shell(line: str, url: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OFFRL_URL": url, "PY": sys.executable, **more}
    return subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_stdout_that_cannot_be_written_is_one_line_and_status_1(command, daemon):
    line = f'"$PY" -m offrl.cli {" ".join(command)}'
    full = shell(f"{line} > /dev/full", daemon.url)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("error: cannot write to stdout: No space left on device; lost: ")
    closed = shell(f"{line} >&-", daemon.url)
    assert closed.returncode == 1
    assert closed.stderr == "error: stdout is closed; redirect it to a file or to /dev/null\n"


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", "<&-", "2>&- <&-"])
def test_the_other_streams_may_be_closed(streams, daemon):
    for command in ("ping", "algos", "top --once", "top", "status --watch"):
        ran = shell(f'"$PY" -m offrl.cli {command} {streams}', daemon.url)
        assert ran.returncode == 0, (command, ran.stderr)
        assert ran.stdout
    assert shell(f'"$PY" -m offrl.cli status nosuch {streams}', daemon.url).returncode == 2


def test_nothing_is_done_whose_result_nobody_would_see(daemon, client):
    before = len(client.jobs("all"))
    ran = shell('"$PY" -m offrl.cli collect --env CartPole-v1 --into unseen --steps 10 >&-', daemon.url)
    assert ran.returncode == 1
    assert len(client.jobs("all")) == before


def test_what_is_lost_is_said(daemon):
    ran = shell('"$PY" -m offrl.cli --version > /dev/full', daemon.url)
    assert "lost: offrl " in ran.stderr


def test_bytes_of_a_file_that_is_lost_are_not_shown(daemon):
    copies = "from offrl.streams import run; import sys; run(lambda: sys.stdout.buffer.write(bytes(range(256)) * 64))"
    ran = shell(f'"$PY" -c "{copies}" > /dev/full', daemon.url)
    assert ran.stderr == "error: cannot write to stdout: No space left on device; redirect stdout to another place\n"


def test_a_reader_that_has_gone_is_no_word(daemon):
    """More than a pipe holds, so that the writer meets its end."""
    line = 'set -o pipefail; for i in 1 2 3; do "$PY" -m offrl.cli algos --json; done | (read -n 1; exec <&-; sleep 3)'
    ran = shell(line, daemon.url)
    assert ran.returncode == READER_GONE
    assert ran.stderr == ""


def test_letters_that_the_encoding_lacks_are_escaped(daemon):
    for encoding in ("ascii", "latin-1"):
        ran = shell('"$PY" -m offrl.cli status "観測"', daemon.url, PYTHONIOENCODING=encoding)
        assert ran.returncode == 2
        assert "\\u89b3" in ran.stderr
        assert shell('"$PY" -m offrl.cli top --once', daemon.url, PYTHONIOENCODING=encoding, LC_ALL="C").returncode == 0


@pytest.mark.parametrize("option", ["--default-config", "--version", "--help"])
def test_the_daemons_own_options_too(option, daemon):
    line = f'"$PY" -m offrld.daemon.main {option}'
    full, closed = shell(f"{line} > /dev/full", daemon.url), shell(f"{line} >&-", daemon.url)
    assert (full.returncode, closed.returncode) == (1, 1)
    assert full.stderr.startswith("error: cannot write to stdout") and full.stderr.count("\n") == 1
    assert closed.stderr.count("\n") == 1


def test_bad_arguments_of_the_daemon_look_like_other_errors(daemon):
    ran = shell('"$PY" -m offrld.daemon.main --nosuch', daemon.url)
    assert ran.returncode == 2
    assert ran.stderr == "error: unrecognized arguments: --nosuch; see `offrld --help`\n"
    ran = shell('"$PY" -m offrld.daemon.main --check-config --config /nowhere.toml', daemon.url)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: /nowhere.toml does not exist; ")
