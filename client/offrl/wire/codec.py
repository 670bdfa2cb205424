"""Requests and replies as bytes, and back."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from offrl import message as messages
from offrl.errors import InvalidMessage, ProtocolMismatch, from_wire, to_wire
from offrl.explained import explained
from offrl.wire.replies import Encoded, JobInfo, Reply
from offrl.wire.requests import CHUNK, AnyRequest, ReplyT, Request
from offrl_store.errors import OffrlError

PROTOCOL = 2  # 2: data in a frame of its own, settings that 1 did not have
MAX_MESSAGE = CHUNK + (1 << 16)  # the socket drops larger ones
LIST_BYTES = MAX_MESSAGE - (1 << 16)  # of the entries in one part of a list; one more entry of `ENTRY_BYTES` fits beside them
ENTRY_BYTES = 1 << 15  # of one entry of a list
ERROR_TEXT = 4_000  # characters of an error's message
_REQUEST: TypeAdapter[Request[Any]] = TypeAdapter(AnyRequest)


def encode_request(request: Request[Any]) -> bytes:
    """Encode a request."""
    return messages.pack({"protocol": PROTOCOL, **request.model_dump(exclude=_unset(request))})


def encode_frames(request: Request[Any]) -> list[bytes | memoryview]:
    """Encode a request as the frames ``[body]``, or ``[body, data]`` if it has data."""
    if (data := getattr(request, "data", None)) is None:
        return [encode_request(request)]
    return [messages.pack({"protocol": PROTOCOL, **request.model_dump(exclude={"data"})}), data]


def _unset(request: Request[Any]) -> set[str]:
    return {name for name in request.later if getattr(request, name) is None}


def decode_request(body: bytes, data: bytes | memoryview | None = None) -> Request[Any]:
    """Decode the request in ``body``; ``data``: its field of that name, from a frame of its own.

    Raises:
        ProtocolMismatch: the client speaks another version.
        InvalidMessage: anything else is wrong; the message names the field.
    """
    message = messages.unpack_request(body)
    version = message.pop("protocol", None)
    if type(version) is not int or version != PROTOCOL:
        raise ProtocolMismatch(
            f"the client speaks protocol {messages.shown(version)}, this daemon {PROTOCOL}", hint=_older(version, "client", "daemon")
        )
    if data is not None:
        if "data" in message:
            raise InvalidMessage("the message has data, and a separate frame of data follows: send one of them")
        message["data"] = data
    try:
        return _REQUEST.validate_python(message, strict=True)
    except ValidationError as error:
        raise invalid_message(error) from None


_SAME = "install the same version of offrl on both sides, and check that OFFRL_URL is the address of an offrld"


def _older(version: Any, other: str, this: str) -> str:
    """Return the hint for a client or daemon that speaks ``version``."""
    if type(version) is not int:
        return _SAME
    return f"install the same version of offrl on both sides: the {other if version < PROTOCOL else this} is older"


def encode_reply(reply: Reply) -> bytes:
    """Encode a successful reply."""
    if isinstance(reply, Encoded):
        return reply.body
    return messages.pack_reply({"protocol": PROTOCOL, "ok": True, "result": reply.model_dump()})


def encoded_job(job: JobInfo) -> bytes:
    """Encode a job as an entry for `encoded_list`."""
    return messages.pack_reply(job.model_dump())


def encoded_list(name: str, entries: list[bytes], **others: Any) -> Encoded:
    """Make a successful reply whose last field ``name`` is a list of encoded entries."""
    return Encoded(body=messages.pack_around({"protocol": PROTOCOL, "ok": True, "result": {**others, name: []}}, entries))


def encode_error(error: OffrlError) -> bytes:
    """Encode an error reply."""
    fields = {name: value if len(value) <= ERROR_TEXT else value[:ERROR_TEXT] + "..." for name, value in to_wire(error).items()}
    return messages.pack_reply({"protocol": PROTOCOL, "ok": False, "error": fields})


def decode_reply(body: bytes, model: type[ReplyT]) -> ReplyT:
    """Decode the reply in ``body`` as ``model``; raise the error that it carries."""
    try:
        message = messages.unpack(body)
    except InvalidMessage as error:
        raise ProtocolMismatch(f"the daemon sent an unreadable reply: {error.message}", hint=_SAME) from None
    if (version := message.get("protocol")) != PROTOCOL:
        raise ProtocolMismatch(
            f"the daemon speaks protocol {messages.shown(version)}, this client {PROTOCOL}", hint=_older(version, "daemon", "client")
        )
    if message.get("ok") is not True:
        failure = message.get("error") or {}
        raise from_wire(str(failure.get("code", "internal")), str(failure.get("message", "no message")), str(failure.get("hint", "")))
    try:
        return model.model_validate(message.get("result"))
    except ValidationError as error:
        raise ProtocolMismatch(f"the daemon's reply does not fit the protocol: {invalid_message(error).message}", hint=_SAME) from None


def invalid_message(error: ValidationError) -> InvalidMessage:
    """Describe the first mistake in one line: the field, its value, what was expected."""
    return InvalidMessage(str(explained(error)))
