"""The framing of ZMTP 3 (rfc.zeromq.org/spec/23): messages of frames as bytes, and the handshake of a ROUTER without keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MORE, LONG, COMMAND = 1, 2, 4
SIGNATURE = b"\xff" + b"\0" * 7 + b"\x01\x7f"
GREETING_BYTES = 64
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x00"
ENDLESS = 4096  # frames after which a message counts as endless
Message = list[bytes]


class Broken(Exception):
    """The other side violates the protocol, or exceeds a limit: nothing more can be read from it."""


def encode(frames: Sequence[bytes | memoryview], flags: int = 0) -> list[bytes | memoryview]:
    """Return the parts of a message as they go over the wire."""
    parts: list[bytes | memoryview] = []
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        more = flags | (MORE if number < last else 0)
        size = len(frame)
        parts.append(bytes((more, size)) if size < 256 else bytes((more | LONG,)) + size.to_bytes(8, "big"))
        parts.append(frame)
    return parts


def command(body: bytes) -> bytes:
    """Encode a command of less than 256 bytes."""
    return bytes((COMMAND, len(body))) + body


class Reader:
    """Cuts the received bytes into messages.

    ``most_bytes``: limit of one frame; ``most_frames``: frames of a message that keep their content; the frames after them come empty.
    """

    def __init__(self, most_bytes: int, most_frames: int) -> None:
        self._most_bytes, self._most_frames = most_bytes, most_frames
        self._buffer = bytearray()
        self._frames: Message = []

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[bool, Message]]:
        """Take bytes; yield each complete message: (whether it is a command, its frames). Raises `Broken`."""
        buffer = self._buffer
        buffer += data
        at, end = 0, len(buffer)
        try:
            while end - at >= 2:
                flags = buffer[at]
                if flags > 7 or (flags & COMMAND and flags & MORE):
                    raise Broken(f"a frame has the flags {flags}")
                if flags & LONG:
                    if end - at < 9:
                        break
                    size, begin = int.from_bytes(buffer[at + 1 : at + 9], "big"), at + 9
                else:
                    size, begin = buffer[at + 1], at + 2
                if size > self._most_bytes:
                    raise Broken(f"a frame has {size} bytes")
                if end - begin < size:
                    break
                at = begin + size
                if flags & COMMAND:
                    yield True, [bytes(buffer[begin:at])]
                    continue
                kept = len(self._frames) < self._most_frames
                self._frames.append(bytes(memoryview(buffer)[begin:at]) if kept else b"")
                if len(self._frames) > ENDLESS:
                    raise Broken("a message never ends")
                if not flags & MORE:
                    message, self._frames = self._frames, []
                    yield False, message
        finally:
            del buffer[:at]
