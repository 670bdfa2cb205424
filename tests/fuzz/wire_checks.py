"""What must hold for any bytes that arrive, on either side of the wire."""

from __future__ import annotations

from offrl import wire
from offrl_store.errors import OffrlError
from offrld.daemon.access import changes, roles
from offrld.daemon.access.caller import Caller

CALLERS = [Caller("reader", "reader"), Caller("submitter", "submitter"), Caller("operator", "operator")]
REPLIES = [wire.Pong, wire.JobInfo, wire.Events, wire.Done, wire.UploadOpened, wire.DatasetList]


def check(body: bytes) -> wire.Request | None:
    """Read ``body`` as the daemon does and as a client does; any exception but the errors of the protocol is a defect."""
    request = None
    try:
        request = wire.decode_request(body)
    except OffrlError as error:
        _check_error(error)
    else:
        for parts in ([wire.encode_request(request)], wire.encode_frames(request)):
            assert wire.decode_request(*parts) == request, "a request changes when it is sent on"
        changes.described(request, None)
        for caller in CALLERS:
            try:
                roles.check(caller, request)
            except OffrlError as error:
                assert caller.role != "operator"
                _check_error(error)
    try:
        wire.decode_reply(body, REPLIES[len(body) % len(REPLIES)])
    except OffrlError as error:
        assert "\n" not in str(error)
    return request


def _check_error(error: OffrlError) -> None:
    """It fits into a reply, in one line, and arrives as it was."""
    assert "\n" not in str(error)
    answer = wire.encode_error(error)
    assert len(answer) < 4_000, "an error repeats what was sent"
    try:
        wire.decode_reply(answer, wire.Done)
    except OffrlError as arrived:
        assert arrived.code == error.code
    else:
        raise AssertionError("an error arrives as an answer")
