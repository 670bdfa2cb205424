"""The log: one line for each event, the job on every line about a job, fields for systemd, nothing secret, nothing forged."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daemon_harness import Daemon

from offrl import wire
from offrl_store.errors import OffrlError
from offrld.daemon import logs

CANARY = "hunter2-1f3c"


def record(message: str, job: str | None = None, error: BaseException | None = None, level: int = logging.ERROR) -> logging.LogRecord:
    made = logging.LogRecord("offrld.test", level, __file__, 1, message, (), (type(error), error, error.__traceback__) if error else None)
    made.job = job
    return made


def raised() -> Exception:
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z info forged")
    except ValueError as error:
        return error


def test_every_line_about_a_job_names_it(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon('log_format = "json"\nlog_level = "debug"\n').start()
    daemon.dataset("a")
    jobs = [daemon.train("a", behaviour) for behaviour in ("normal", "crash", "garbage")]
    for job in jobs:
        daemon.wait(job)
    with pytest.raises(OffrlError):
        daemon.ask(wire.GetJob(job="nobody"))
    daemon.stop()
    lines = [json.loads(line) for line in daemon.output.read_text().splitlines()]
    assert all(set(line) >= {"time", "level", "logger", "message"} for line in lines)
    for job in jobs:
        about = [line["message"] for line in lines if line.get("job") == job]
        assert any("worker process" in message for message in about)
        assert any("type=get_job outcome=ok" in message for message in about)
        assert not [line for line in lines if job in line["message"] and line.get("job") != job]
    assert not [line for line in lines if "job" not in line and re.search(r"\bjob \w{8}\b", line["message"])]
    assert [line for line in lines if "outcome=unknown" in line["message"] and line["job"] == "nobody"]
    assert not [line for line in lines if "type=ping" in line["message"] and "job" in line]  # it does not stick to what comes after


def test_contents_of_requests_are_not_in_the_log(new_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", CANARY)
    daemon = new_daemon('log_level = "debug"\n').start()
    daemon.upload({"a": CANARY.encode()})
    daemon.dataset("a")
    daemon.wait(daemon.train("a", CANARY, key=CANARY))
    with pytest.raises(OffrlError):
        daemon.ask(wire.GetDataset(name=CANARY))
    daemon.connection.raw([b"1", CANARY.encode()])
    daemon.stop()
    assert "type=submit outcome=ok" in daemon.output.read_text()
    assert CANARY not in daemon.output.read_text()


def test_a_text_line_cannot_be_forged_and_a_traceback_is_indented() -> None:
    text = logs.Text(with_time=True).format(record("dataset 'a\n2026-01-01T00:00:00.000Z info forged\x1b[2J'", "j1", raised()))
    first, *rest = text.split("\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z error offrld.test: .* job=j1", first)
    assert "\x1b" not in text
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert "a\\n2026" in first


def test_json_has_the_traceback_in_its_line() -> None:
    line = logs.Json().format(record("went\nwrong", "j1", raised()))
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["job"], told["level"]) == ("went\nwrong", "j1", "error")
    assert "ValueError: first" in told["traceback"]
    assert set(json.loads(logs.Json().format(record("x")))) == {"time", "level", "logger", "message"}


def fields(entry: bytes) -> dict[str, str]:
    """Parse an entry of the journal's native protocol."""
    found = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            length = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + length], entry[9 + length :]
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_fields(folders: Callable[[], Path], capfd: pytest.CaptureFixture[str]) -> None:
    path = str(folders() / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        handler = logs.JournalHandler(path)
        handler.handle(record("one\ntwo", "j1", level=logging.WARNING))
        got = fields(journal.recv(65536))
        assert (got["MESSAGE"], got["PRIORITY"], got["OFFRLD_JOB"], got["LOGGER"]) == ("one\ntwo", "4", "j1", "offrld.test")
        handler.handle(record("broken", error=raised()))
        got = fields(journal.recv(65536))
        assert got["MESSAGE"].startswith("broken\nTraceback")
        assert got["PRIORITY"] == "3"
        assert "OFFRLD_JOB" not in got
    os.unlink(path)
    capfd.readouterr()
    handler = logs.JournalHandler(path)  # made now: its way out is the stderr of this test
    handler.handle(record("nobody\nhears", "j1"))
    handler.close()
    assert capfd.readouterr().err == "<3>error offrld.test: nobody\\nhears job=j1\n"


def test_a_daemon_whose_stderr_is_the_journal_gives_priorities(new_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = new_daemon('log_format = "json"\n')
    daemon.output.touch()
    stat = daemon.output.stat()
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
    daemon.start()
    daemon.dataset("a")
    daemon.wait(daemon.train("a", "garbage"))
    daemon.stop()
    lines = daemon.output.read_text().splitlines()
    assert {line[:3] for line in lines} == {"<6>", "<4>"}
    assert all(json.loads(line[3:])["level"] == {"6": "info", "4": "warning"}[line[1]] for line in lines)


@pytest.mark.skipif(not os.path.exists(logs.JOURNAL), reason="no systemd here")
def test_the_journal_of_this_machine_takes_an_entry() -> None:
    handler = logs.JournalHandler()
    handler._otherwise = None  # a way out would be an error here
    handler.handle(record("offrld's tests write to the journal", level=logging.INFO))


def test_threads_started_for_a_job_log_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("offrld.test.threads")
    handler = logs.Stream(logs.Text(with_time=False))
    handler.setStream(sys.stderr)
    handler.addFilter(logs._note_job)
    logger.addHandler(handler)
    logger.propagate = False
    try:

        async def work() -> None:
            with logs.about("j9"):
                await asyncio.to_thread(logger.error, "in a thread")
                task = asyncio.create_task(asyncio.to_thread(logger.error, "in a task"))
            logger.error("outside")
            await task

        asyncio.run(work())
    finally:
        logger.removeHandler(handler)
    said = sorted(capsys.readouterr().err.splitlines())
    assert said == [
        "error offrld.test.threads: in a task job=j9",
        "error offrld.test.threads: in a thread job=j9",
        "error offrld.test.threads: outside",
    ]
