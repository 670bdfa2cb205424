"""The daemon's address: from the argument, the environment or the usual places; and a probe whether a daemon listens there.

An address is ``ipc:///path/of/a.sock`` or ``tcp://HOST:PORT``. The probe is a plain connect of the operating system, because ZeroMQ
itself waits for ever for a peer that does not exist.
"""

from __future__ import annotations

import os
import socket
import time

from offrl.errors import InvalidInput, NoDaemon, NotAllowed

SOCKET_LIMIT = 107  # bytes of a unix socket's path: sun_path of Linux without its final zero
CONNECT_TIMEOUT_S = 3.0  # for a tcp address that drops packets silently
START_HINT = "start one with `offrl serve`, or name its address with OFFRL_URL"


def resolve(url: str | None = None) -> str:
    """Return the daemon's address: ``url``, else OFFRL_URL, else the socket in OFFRLD_STATE_DIR, the user's or the machine's state folder.

    Of the last two, the first one with a listening daemon is returned. Raises `InvalidInput`, `NotAllowed`, and `NoDaemon` if no daemon
    listens at either.
    """
    named = url or os.environ.get("OFFRL_URL")
    if named:
        return check(named)
    if state := os.environ.get("OFFRLD_STATE_DIR"):
        return check(socket_url(state))
    candidates = [check(socket_url(folder)) for folder in usual_state_dirs()]
    refused: NotAllowed | None = None
    for candidate in candidates:
        try:
            probe(candidate)
            return candidate
        except NoDaemon:
            continue
        except NotAllowed as error:
            refused = error
    if refused is not None:
        raise refused
    looked = " or ".join(candidate.removeprefix("ipc://") for candidate in candidates)
    raise NoDaemon(f"no daemon at {looked}", hint=START_HINT)


def user_folder(variable: str, *below_home: str) -> str | None:
    """Return the folder in an environment variable, else the one below the user's home; None for a user without a home."""
    if named := os.environ.get(variable):
        return named
    home = os.path.expanduser("~")
    return None if home == "~" else os.path.join(home, *below_home)  # unchanged: no HOME, and no entry in the list of users


def usual_state_dirs() -> list[str]:
    """Return the user's state folder, if the user has a home, then the machine's."""
    base = user_folder("XDG_STATE_HOME", ".local", "state")
    return [*([] if base is None else [os.path.join(base, "offrld")]), "/var/lib/offrld"]


def socket_url(state_dir: str | os.PathLike[str]) -> str:
    """Return the default address of a daemon that serves ``state_dir``."""
    return "ipc://" + os.path.join(os.path.realpath(os.path.expanduser(state_dir)), "run", "offrld.sock")


def check(url: str) -> str:
    """Return ``url`` if it has the form of an address; otherwise raise `InvalidInput` with the reason."""
    transport, separator, rest = url.partition("://")
    if transport == "ipc" and separator and rest:
        length = len(os.fsencode(rest))
        if length > SOCKET_LIMIT:
            raise InvalidInput(
                f"the socket's path {rest} has {length} bytes, the system allows {SOCKET_LIMIT}",
                hint="start the daemon with a shorter --state-dir or --bind ipc:///short/path.sock, and set OFFRL_URL to that",
            )
        return url
    if transport == "tcp" and separator:
        host, _, port = rest.rpartition(":")
        if host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return url
    raise InvalidInput(f"{url!r} is not the address of a daemon", hint="ipc:///path/of/offrld.sock or tcp://HOST:PORT")


def mechanism(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> str:
    """Return the security mechanism of the server at a tcp address: CURVE, NULL (no keys), or "" if it does not speak ZeroMQ."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    greeting = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s) as plain:
            plain.sendall(
                b"\xff" + bytes(8) + b"\x7f\x03\x00"
            )  # signature and version of ZMTP 3.0; the server then sends the rest of its greeting
            while len(greeting) < 32 and (part := plain.recv(64)):
                greeting += part
    except OSError:
        return ""
    return greeting[12:32].rstrip(b"\0").decode(errors="replace") if len(greeting) >= 32 and greeting[0] == 0xFF else ""


def _connect(path: str, end: float) -> None:
    """Connect to a unix socket; retry until the time ``end`` while its backlog is full."""
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
                plain.settimeout(max(0.001, end - time.monotonic()))
                plain.connect(path)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.005)


def probe(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Return if a server accepts connections at ``url``; otherwise raise `NoDaemon` or `NotAllowed`, within ``timeout_s``."""
    transport, _, rest = url.partition("://")
    try:
        if transport == "ipc":
            _connect(rest, time.monotonic() + timeout_s)
        else:
            host, _, port = rest.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except PermissionError:
        raise NotAllowed(
            f"you may not use the daemon at {url}", hint="it belongs to another user; start your own with `offrl serve`"
        ) from None
    except OSError as error:
        why = "" if isinstance(error, FileNotFoundError | ConnectionRefusedError) else f" ({error.strerror or error})"
        raise NoDaemon(f"no daemon at {url}{why}", hint=START_HINT) from None
