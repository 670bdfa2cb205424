"""A short run of the wire fuzzer; `make fuzz` is the long one, with ten million messages and coverage guidance."""

from __future__ import annotations

import random
import zlib

import socket_wire
from wire_checks import check
from wire_mutations import HEADERS, bodies, mutate

MESSAGES = 10_000  # read in this process
SENT = 5_000  # to a daemon


def test_an_example_of_every_request_survives_the_wire() -> None:
    for body in bodies():
        assert check(body) is not None


def test_any_bytes_are_a_request_or_a_protocol_error() -> None:
    chance = random.Random(11)
    begin = bodies()
    read = 0
    for _ in range(MESSAGES):
        body = mutate(chance.choice(begin), chance)
        if check(body) is not None:
            read += 1
            begin.append(body)  # mutations of mutations
    assert 0.01 < read / MESSAGES < 0.5  # the mutations do neither nothing nor destroy everything


def test_every_message_cut_anywhere_is_refused() -> None:
    for body in bodies():
        for length in range(len(body)):
            assert check(body[:length]) is None
            for header in HEADERS:
                check(body[:length] + header)


def test_mutated_sessions_leave_a_daemon_unchanged() -> None:
    figures = socket_wire.run(SENT, seed=zlib.crc32(b"quick"))
    assert figures["messages"] >= SENT
    assert figures["answers"]["ok"] > SENT // 100
    assert figures["answers"].get("internal", 0) == 0
    assert figures["at last, MB"] < figures["memory at first, MB"] + 60
