"""What one message may be: limits that hold before anybody looks at its content, at a cost that does not grow with what is sent."""

from __future__ import annotations

import contextlib
import sys

import msgpack
import pytest

from offrl import message, wire
from offrl.errors import InvalidMessage, OffrlError, ProtocolMismatch

PING = {"protocol": wire.PROTOCOL, "type": "ping"}
SUBMIT = {"protocol": wire.PROTOCOL, "type": "submit"}


def train(**config) -> dict:
    return {**SUBMIT, "spec": {"kind": "train", "algorithm": "bc", "dataset": "d", "config": config}}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({**PING, "x": [None] * 1_000_000}, "max_array_len"),
        (train(x=[[]] * 4_999, **{f"y{i}": [[]] * 4_999 for i in range(20)}), "more than 65536 values"),
        ({**PING, **{str(i): 0 for i in range(5_000)}}, "max_map_len"),
        (train(x=float("nan")), "finite"),
        (train(x=float("-inf")), "finite"),
        (train(x="a\0b"), "NUL"),
        ({**PING, b"key": 1}, "a key must be text"),
        ({**PING, b"k" * 500_000: 1}, "a key must be text"),
        ({**PING, "type": "x" * 500_000}, "type"),
        ({"protocol": wire.PROTOCOL, "type": "get_events", "job": "a", "cursor": "12"}, "cursor"),
        ({"protocol": wire.PROTOCOL, "type": "get_events", "job": "a", "cursor": True}, "cursor"),
        ({"protocol": wire.PROTOCOL, "type": "get_events", "job": "a", "cursor": 2**64 - 1}, "cursor"),
        ({"protocol": wire.PROTOCOL, "type": "read_log", "job": "a", "offset": 2**63}, "offset"),
        ({"protocol": wire.PROTOCOL, "type": "get_job", "job": b"\xff" * 1_000_000}, "job"),
        ({"protocol": wire.PROTOCOL, "type": "write_chunk", "upload": "u", "path": "p", "offset": 0, "data": "text", "crc32": 0}, "data"),
    ],
)
def test_a_request_outside_the_limits_is_refused_in_one_short_line(sent, says) -> None:
    with pytest.raises(InvalidMessage, match=says) as caught:
        wire.decode_request(msgpack.packb(sent))
    assert len(str(caught.value)) < 1_000
    assert len(wire.encode_error(caught.value)) < wire.MAX_MESSAGE


@pytest.mark.parametrize("version", [True, float(wire.PROTOCOL), "2", None, wire.PROTOCOL + 1, [1] * 4_000, "x" * 1_000_000])
def test_the_protocol_is_a_whole_number(version) -> None:
    with pytest.raises(ProtocolMismatch, match="speaks protocol") as caught:
        wire.decode_request(msgpack.packb({"protocol": version, "type": "ping"}))
    assert len(str(caught.value)) < 1_000


def costly() -> list[bytes]:
    """Messages of a megabyte that are as much work as their bytes can make."""
    some = msgpack.packb([None] * 4_999)
    return [
        msgpack.packb(train(**{f"x{i}": [[]] * 4_999 for i in range(13)})),
        msgpack.packb({**PING, "x": [[[]] * 4_999] * 200}),
        b"\x81\xa1x" + b"\xdc\x13\x88" * 300_000,
        b"\xde\x0f\xff\xa1a" * 200_000,
        msgpack.packb({**PING, "x": [{str(i): 0 for i in range(4_000)}] * 40}),
        msgpack.packb({"protocol": wire.PROTOCOL, "type": "open_upload", "upload": "u", "files": [{}] * 5_000}),
        msgpack.packb({**PING, "type": "open_upload", "upload": "u", "files": [{f"{i:x}": 0 for i in range(12)}] * 5_000}),
        b"\x81\xa1x\xdc\x00\xc8" + some * 200,
    ]


@pytest.mark.parametrize("number", range(8))
def test_no_message_holds_up_the_daemon(number: int) -> None:
    """They took up to 1.6 s. What is counted is the calls that a message costs, which no busy machine changes."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    body = costly()[number]
    sys.setprofile(count)
    try:
        with contextlib.suppress(OffrlError):
            wire.decode_request(body)
    finally:
        sys.setprofile(None)
    assert calls < 1_000_000


def test_a_reply_may_hold_what_a_request_may_not() -> None:
    reply = {"protocol": wire.PROTOCOL, "ok": True, "result": {"metrics": {"loss": {"0": float("nan")}}, "x": list(range(100_000))}}
    assert len(message.unpack(message.pack(reply))["result"]["x"]) == 100_000
