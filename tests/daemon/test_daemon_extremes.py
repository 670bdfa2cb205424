"""Extreme values in offrld.toml and in requests: refused in one line, or they work; what ``--check-config`` approves never fails later."""

from __future__ import annotations

import math
import socket
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_harness import Daemon
from pydantic import BaseModel

from offrl import message, wire
from offrl.errors import OffrlError
from offrld.daemon import startable
from offrld.daemon.config import Settings, load_with_sources

NUMBERS = [
    "-9223372036854775809",
    "-1",
    "0",
    "1",
    "9223372036854775807",
    "9223372036854775808",
    "1e400",
    "-1e308",
    "1e308",
    "0.5",
    "inf",
    "-inf",
    "nan",
    "-0.0",
    "1" + "0" * 5000,
]
OTHERS = [
    "true",
    '""',
    '"\\u0000"',
    '"a\\nb"',
    f'"{"x" * 5000}"',
    '"é"',
    '"../.."',
    "[]",
    "[[[]]]",
    "{}",
    "{a = 1}",
    "1979-05-27",
    "[" * 50 + "]" * 50,
]
OWN = {"state_dir", "bind"}  # where the daemon under test lives


def fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def refusal(folder: Path, text: str | bytes) -> str | None:
    """Return what ``--check-config`` says about an offrld.toml; None if it approves."""
    folder.mkdir(exist_ok=True)
    (folder / "offrld.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    try:
        startable.check(load_with_sources(str(folder), None, None)[0])
    except OffrlError as error:
        assert error.exit_status in (2, 4)
        assert error.hint
        return str(error)
    return None


def toml(values: dict[str, str]) -> str:
    plain = [f"{name} = {value}" for name, value in values.items() if "." not in name]
    return "\n".join([*plain, *(f"{name} = {value}" for name, value in values.items() if "." in name)]) + "\n"


def test_approved_settings_start_and_work_and_all_others_are_refused_in_one_line(new_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    approved: dict[str, list[str]] = {}
    for name in fields():
        for value in [*NUMBERS, *OTHERS]:
            said = refusal(tmp_path / "state", toml({name: value}))
            if said is None:
                approved.setdefault(name, []).append(value)
            else:
                assert "\n" not in said
                assert len(said) < 1000, said
                assert name in OWN or "is not TOML" in said or name.rpartition(".")[2] in said, said
    assert "9223372036854775807" in approved["limits.unfinished"]
    assert not {"inf", "nan", "1e400", "-1"} & {value for name in approved.keys() - OWN for value in approved[name]}
    slow = {"slots.train", "slots.light", "devices.threads", "workers.spare", "log_level", "metrics_port", "metrics_host"}
    slow |= {
        "max_connections",
        "limits.unfinished",
        "limits.unfinished_per_owner",
        "workers.confine",
        "disk.quota_bytes",
        "uploads.keep_free_bytes",
        "uploads.open",
    }
    for take in (0, -1):  # the first and the last that each setting may have, all at once
        values = {name: chosen[take] for name, chosen in approved.items() if name not in OWN | slow | {"socket_group", "retry.attempts"}}
        daemon = new_daemon(toml({**values, "retry.attempts": "1"}) + "# [retry]\n").start()
        told = daemon.ask(wire.GetSettings())
        assert len(told.settings) > 40
        daemon.ask(wire.Overview())
        assert {check.name for check in daemon.ask(wire.Checkup()).checks} >= {"queue"}
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.output.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "cannot be read"),
        (b"a = ", "is not TOML"),
        (b"x = " + b"[" * 100_000, "is not TOML"),
        (b"x = " + b"9" * 5000, "is not TOML"),
        (b"[unknown]\na = 1", "no setting 'unknown"),
        (b"slots = 3", r"\[slots\]"),
        (b'bind = "tcp://127.0.0.1:65536"', "is not an address"),
        (b'bind = "tcp://127.0.0.1"', "is not an address"),
        (b'bind = "tcp://:1"', "is not an address"),
        (b'bind = "tcp://no-such-host.invalid:0"', "cannot listen on"),
        (b'bind = "tcp://192.0.2.1:0"', "cannot listen on"),
        (b'bind = "ipc:///no/such/folder/a.sock"', "no folder /no/such/folder"),
        (b'bind = "ipc:///etc/passwd"', "not a socket"),
        (b'bind = "udp://127.0.0.1:1"', "is not an address"),
        (b'socket_group = "no-such-group"', "no group"),
        (b'[devices]\ncards = ["the left one"]', "cards"),
        (b"[devices]\ncards = [-1]", "cards"),
        (b'import_roots = ["relative"]', "not an absolute path"),
        (b'metrics_port = 1\nmetrics_host = "192.0.2.1"', "metrics cannot be served"),
    ],
)
def test_an_unusable_file_is_refused_by_the_check_and_at_the_start_alike(new_daemon: Callable[..., Daemon], text: bytes, said: str) -> None:
    import re

    daemon = new_daemon()
    (daemon.state / "offrld.toml").write_bytes(text)
    place = ("--state-dir", str(daemon.state))
    checked, started = daemon.refused(*place, "--check-config"), daemon.refused(*place)
    assert checked == started
    assert (checked[0], len(checked[1])) == (2, 1), checked
    assert re.search(said, checked[1][0]), checked


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert refusal(tmp_path / "state", b'\xef\xbb\xbflog_level = "debug"\n') is None


def test_places_that_cannot_be_used_are_refused_by_the_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for state, bind, said in (
            (tmp_path / "file", None, "cannot use"),
            (tmp_path / "file" / "below", None, "cannot use"),
            (tmp_path / ("x" * 300), None, "too long|has .* bytes"),
            (tmp_path, f"tcp://127.0.0.1:{taken.getsockname()[1]}", "in use"),
        ):
            with pytest.raises(OffrlError, match=said):
                startable.check(load_with_sources(str(state), bind, None)[0])


# ------------------------------------------------------------------------------------------------------------------- requests
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308, -1e308, "", "x", "x" * 300,
    "x" * 20_000, "..", "../..", "/", "/etc/passwd", ".", "a/../b", "con", "CON", "A", "é", "\u202e", "a\x1b[31mb", "a\nb", "train",
    "9" * 400, b"", b"\xff" * 10, [], [[]], [None], ["x"], [-1], [2**64 - 1], ["x"] * 3000, {}, {"": ""}, {"a": {"b": {"c": [1e308]}}},
    {"x" * 300: 2**64 - 1}, {"k": b"bytes"}, "cuda:99999999999999999999", "job:x:9999999999", "graph",
]  # fmt: skip


def requests() -> list[type[wire.Request]]:
    return sorted(typing.get_args(typing.get_args(wire.AnyRequest)[0]), key=lambda kind: kind.__name__)


def example(model: type[BaseModel]) -> dict[str, Any]:
    """Return the required fields of a request."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if field.is_required():
            found[name] = {
                "job": "j",
                "upload": "u",
                "backup": "b",
                "path": "a",
                "name": "n",
                "offset": 0,
                "size": 1,
                "data": b"",
                "crc32": 0,
                "files": [{"path": "a", "size": 0, "sha256": "0" * 64}],
                "action": "resume",
                "algorithm": "anything",
                "dataset": "data",
                "env": "CartPole-v1",
                "steps": 1,
                "format": "npz",
                "spec": {"kind": "train", "algorithm": "anything", "dataset": "data", "steps": 1},
            }[name]
        elif name in ("type", "kind") and isinstance(field.default, str):
            found[name] = field.default
    return found


def bodies(kind: type[wire.Request]) -> Iterator[dict[str, Any]]:
    base = example(kind)
    for name in kind.model_fields:
        if name != "type":
            for value in VALUES:
                yield {**base, name: value}
    if kind is wire.Submit:
        for spec in typing.get_args(typing.get_args(kind.model_fields["spec"].annotation)[0] or ()) or _specs():
            least = example(spec)
            for name in spec.model_fields:
                for value in VALUES:
                    yield {**base, "spec": {**least, name: value}}


def _specs() -> tuple[type[BaseModel], ...]:
    from offrl import job

    return (job.TrainSpec, job.ImportSpec, job.ExportSpec, job.DatasetExportSpec, job.CollectSpec, job.TrainOnlineSpec)


def test_any_value_in_any_field_gets_an_answer_of_one_line(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon("[slots]\ntrain = 0\n[workers]\nspare = 0\n").start()
    daemon.dataset("data")
    daemon.ask(wire.ControlQueue(action="pause"))
    assert daemon.connection is not None
    number = 0
    for kind in requests():
        if kind in (wire.Checkup, wire.BeginBackup):
            continue
        for body in bodies(kind):
            number += 1
            if kind is wire.ControlQueue and body.get("action") == "resume":
                continue
            if "wait_s" in body and isinstance(body["wait_s"], int | float) and math.isfinite(body["wait_s"]) and body["wait_s"] > 0:
                continue
            packed = message.pack({"protocol": wire.PROTOCOL, **body})
            if len(packed) > wire.MAX_MESSAGE:
                continue
            answer = daemon.connection.raw([b"%d" % number, packed])
            assert answer is not None, (kind, body)
            told = message.unpack(answer[1])
            if told["ok"] is not True:
                error = told["error"]
                assert error["code"] != "internal", (kind, body, error)
                assert "\n" not in error["message"], (kind, body, error)
                assert len(error["message"]) < 1500, (kind, body, error)
    assert "Traceback" not in daemon.output.read_text()
    assert len(daemon.ask(wire.ListJobs(kind="all", limit=10_000)).jobs) > 100
    daemon.stop()
    daemon.start()  # what was accepted is read again
    for info in daemon.ask(wire.ListJobs(kind="all", limit=10_000)).jobs[::20]:
        daemon.job(info.job)
    daemon.ask(wire.Overview())
    assert "Traceback" not in daemon.output.read_text()
