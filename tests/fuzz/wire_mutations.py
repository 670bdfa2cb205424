"""Example messages and their mutations: of values, of bytes, of frames and of the order of a session."""

from __future__ import annotations

import copy
import random
from typing import Any

import msgpack

from offrl import wire
from offrl.job import DatasetExportSpec, ExportSpec, ImportSpec, TrainSpec

TRAIN = TrainSpec(algorithm="anything", dataset="recorded", steps=3, config={"clip": 1.5, "critic_encoder.units": [8, 8]}, start="job:1")
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "\0", "../../etc/passwd", "/etc/passwd", "a\nb", "x" * 300, "\u202e", "\U0001f916",
    b"", b"\xff\xfe", b"x" * 5000, [], {}, [[]], {"a": {"a": {}}},
    [None] * 300, [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]], msgpack.ExtType(4, b"x"), msgpack.ExtType(127, b"\0" * 8),
    "ping", "submit", "train",
]  # fmt: skip
HEADERS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xc1",
]


def examples() -> list[wire.Request]:
    """At least one request of every type."""
    entry = wire.FileEntry(path="a/b.bin", size=3, sha256="0" * 64)
    special = [
        wire.Submit(spec=TRAIN, key="k", after=["job"]),
        wire.Submit(spec=ImportSpec(dataset="recorded", upload="u")),
        wire.Submit(spec=ImportSpec(dataset="recorded", path="/tmp/x", append=True)),
        wire.Submit(spec=ExportSpec(job="job", seed=1, step=2)),
        wire.Submit(spec=DatasetExportSpec(dataset="recorded", format="npz")),
        wire.OpenUpload(upload="u", files=[entry]),
        wire.WriteChunk(upload="u", path="a/b.bin", offset=0, data=b"abc", crc32=0x352441C2),
    ]
    given = {"job": "job", "upload": "u", "name": "recorded", "path": "x", "offset": 0, "size": 1, "cursor": 1, "wait_s": 0.0}
    found = list(special)
    for kind in wire.REQUESTS:
        if kind in {type(request) for request in special}:
            continue
        values = {name: given[name] for name in kind.model_fields if name in given}
        for name, field in kind.model_fields.items():
            if field.is_required() and name not in values:
                values[name] = next(iter(getattr(field.annotation, "__args__", ("x",))))  # of a choice the first, else a name
        found.append(kind(**values))
    return found


def bodies() -> list[bytes]:
    """The bytes of the examples."""
    return [wire.encode_request(request) for request in examples()]


def mutate(body: bytes, chance: random.Random) -> bytes:
    """Another message: a value, a key or the structure changed, or bytes."""
    if chance.random() < 0.6:
        try:
            message = msgpack.unpackb(body, strict_map_key=False)
        except (ValueError, TypeError):  # no message any more
            return _bytes(body, chance)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            message = _value(message, chance)
        try:
            return msgpack.packb(message)
        except (ValueError, TypeError, OverflowError):  # nested too deeply, or a number that msgpack has no form for
            return _bytes(body, chance)
    return _bytes(body, chance)


def _value(value: Any, chance: random.Random) -> Any:
    """The value with one thing in it changed, at a random depth."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        value = dict(value)
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.7:
            value[key] = _value(value[key], chance)
        elif what < 0.8:
            del value[key]
        elif what < 0.9:
            value[chance.choice(("x", "type", "protocol", "job", b"type", 1, "y" * 200))] = copy.deepcopy(chance.choice(ODD))
        else:
            value = {"spec": value, "protocol": chance.choice((0, 1, 2, True, "1", 1.0))}
        return value
    if isinstance(value, list) and value and chance.random() < 0.7:
        value = list(value)
        where = chance.randrange(len(value))
        if chance.random() < 0.7:
            value[where] = _value(value[where], chance)
        else:
            value += value * chance.choice((1, 1, 30))
        return value[:5000]
    if isinstance(value, str) and value and chance.random() < 0.4:
        return value[: chance.randrange(len(value))] + chance.choice(("", "\0", "/", "..", "ä", "-", value))
    if isinstance(value, int) and chance.random() < 0.4:
        return value + chance.choice((-1, 1, 2 ** chance.randrange(63)))
    return copy.deepcopy(chance.choice(ODD))


def _bytes(body: bytes, chance: random.Random) -> bytes:
    data = bytearray(body)
    for _ in range(chance.choice((1, 1, 2, 8))):
        what = chance.random()
        where = chance.randrange(len(data) + 1)
        if what < 0.4 and data:
            data[min(where, len(data) - 1)] ^= 1 << chance.randrange(8)
        elif what < 0.55:
            del data[where:]
        elif what < 0.7:
            data[where:where] = chance.choice(HEADERS)
        elif what < 0.8:
            data[where:where] = chance.randbytes(chance.choice((1, 4, 100)))
        elif what < 0.85:
            data[where:where] = bytes([chance.choice((0x81, 0x91, 0xDC))]) * chance.choice((5, 20, 2000))
        elif what < 0.95:
            data[where:where] = data[max(0, where - chance.randrange(1, 30)) : where]  # a key, or a value, twice
        else:
            del data[where : where + chance.randrange(1, 10)]
    return bytes(data)


def frames(number: bytes, body: bytes, chance: random.Random) -> list[bytes]:
    """The frames of a message, now and then too many, too few or too large ones."""
    what = chance.random()
    if what < 0.9:
        return [number, *_parted(body, chance)]
    if what < 0.92:
        return [body]
    if what < 0.94:
        return [number, body, body]
    if what < 0.95:
        return [b"", number, body]
    if what < 0.96:
        return [number * 100, body]
    if what < 0.97:
        return [b"", b""]
    if what < 0.98:
        return [number] + [b"x"] * 500
    if what < 0.99:
        return [number, body + b"\0" * chance.choice((1, 1000))]
    return [number, b"\x81\xa1x" + chance.choice(HEADERS)[:1] + b"\0" * chance.choice((10, 10_000))]


def _parted(body: bytes, chance: random.Random) -> list[bytes]:
    """The body and its data, mostly in a frame of its own, as clients send it."""
    if b"data" in body and chance.random() < 0.9:
        try:
            message = msgpack.unpackb(body)
            if isinstance(data := message.pop("data"), bytes):
                return [msgpack.packb(message), data]
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):  # a message that was made something else
            pass
    return [body]


def session(recorded: list[bytes], chance: random.Random) -> list[bytes]:
    """A session as it was recorded, with messages changed, left out, repeated, moved, or sent again from the beginning."""
    messages = list(recorded)
    for _ in range(chance.choice((0, 1, 2, 5))):
        where, other = chance.randrange(len(messages)), chance.randrange(len(messages))
        what = chance.random()
        if what < 0.3 and len(messages) > 1:
            del messages[where]
        elif what < 0.6:
            messages.insert(other, messages[where])
        elif what < 0.9:
            messages[where], messages[other] = messages[other], messages[where]
        else:
            messages += messages[: chance.randrange(1, 20)]
        if not messages:
            return list(recorded)
    rate = chance.choice((0.1, 0.5, 1.0))
    return [mutate(body, chance) if chance.random() < rate else body for body in messages]
