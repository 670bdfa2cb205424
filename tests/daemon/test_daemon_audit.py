"""The audit log: rotated, read in parts, never flooded, and never in the way of the service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from offrld.daemon.access.audit import REFUSALS, Audit, entries
from offrld.daemon.access.caller import Caller

CALLER = Caller("arm1", "submitter", "10.0.0.7", "0" * 64)


def write(path: Path, acts: list[dict], *, max_bytes: int = 1 << 20, keep: int = 3) -> None:
    """Record acts and wait until each is on disk."""

    async def work() -> None:
        log = Audit(path, max_bytes=max_bytes, keep=keep)
        for act in acts:
            await log.record(CALLER, "submit", **act)
        log.close()

    asyncio.run(work())


def numbers(path: Path, **more: float) -> list[int]:
    return [entry["n"] for entry in entries(path, more.get("since", 0.0), int(more.get("after", 0)), int(more.get("limit", 10_000)))[0]]


def test_old_parts_are_kept_up_to_the_limit_and_numbers_continue(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    for start in range(0, 100, 25):  # four daemons, one after the other
        write(path, [{"job": f"j{start + number}"} for number in range(25)], max_bytes=2000)
    assert sorted(name.name for name in tmp_path.iterdir()) == ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"]
    assert all(name.stat().st_size < 2200 for name in tmp_path.iterdir())
    kept = numbers(path)
    assert kept == list(range(kept[0], 101))
    assert numbers(path, after=95) == [96, 97, 98, 99, 100]
    assert numbers(path, limit=3) == kept[:3]
    newest = json.loads(path.read_text().splitlines()[-1])
    assert (newest["job"], newest["caller"], newest["address"]) == ("j99", "arm1", "10.0.0.7")


def test_settled_waits_for_every_earlier_entry(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"

    async def work() -> None:
        log = Audit(path, max_bytes=1 << 20, keep=3)
        await log.settled()
        assert not path.exists()
        for number in range(1, 2001, 100):
            for _ in range(100):
                log.record(CALLER, "submit")
            await log.settled()
            assert len(numbers(path)) == number + 99
        log.close()

    asyncio.run(work())


def test_entries_in_a_long_log_are_found_by_bisection(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    path.write_text("".join(json.dumps({"n": n, "time": float(n), "job": "j" * (n % 300)}) + "\n" for n in range(1, 5001)))
    for after in (0, 1, 137, 2500, 4998, 4999, 5000):
        assert numbers(path, after=after) == list(range(after + 1, 5001))[: len(numbers(path, after=after))]
        assert numbers(path, after=after, limit=1) == ([after + 1] if after < 5000 else [])
    assert numbers(path, since=4998.0) == [4998, 4999, 5000]


def test_a_torn_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, [{}, {}])
    path.write_bytes(path.read_bytes()[:-10])
    write(path, [{"job": "after"}])
    assert json.loads(path.read_text().splitlines()[-1])["job"] == "after"
    assert numbers(path) == [1, 2]  # the torn one was number 2


def test_refusals_do_not_flood_the_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, [{"outcome": "not_allowed"}] * 500 + [{"job": "last"}])
    found, _ = entries(path, 0.0, 0, 1000)
    assert len(found) == REFUSALS + 1
    assert found[-1]["job"] == "last"


def test_a_log_that_cannot_be_written_stops_nobody_and_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.log"
    path.mkdir()
    write(path, [{"job": "j1"}])
    assert "cannot be written" in caplog.text
    assert '"job": "j1"' in caplog.text


def test_text_of_a_request_cannot_forge_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    write(path, [{"path": 'x"}\n{"n": 99, "caller": "boss"}\n' + "y" * 1000}])
    assert len(path.read_text().splitlines()) == 1
    assert numbers(path) == [1]
