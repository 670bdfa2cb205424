"""Checks whether the daemon can start with its settings, before it creates or changes anything; also for ``--check-config``."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from offrl import keys
from offrl.errors import InvalidInput
from offrld.daemon.config import Settings, tcp_parts
from offrld.daemon.transport.endpoint import group_id
from offrld.daemon.transport.local import SOCKET_HINT, clearable
from offrld.state.folder import StateFolder

FREE_S = 1.0  # for a daemon that has just been killed to free its address


def check(settings: Settings) -> None:
    """Raise `InvalidInput` or `NotAllowed` for the first thing that would keep the daemon from starting.

    If a daemon of this state folder runs, addresses may be in use: by that daemon.
    """
    state = StateFolder(settings.state_dir)
    if settings.socket_group is not None:
        group_id(settings.socket_group)
    _check_folder(state.root)
    state.check_restored()
    if state.root.exists():
        state.check()
    if settings.bind.startswith("ipc://"):
        path = Path(settings.bind.removeprefix("ipc://"))
        if path != state.socket:
            if not path.parent.is_dir():
                raise InvalidInput(f"cannot listen on {settings.bind}: no folder {path.parent}", hint=SOCKET_HINT)
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise InvalidInput(f"cannot listen on {settings.bind}: {path.parent} cannot be written by this user", hint=SOCKET_HINT)
        clearable(path)
    elif not settings.insecure and keys.server_file(state.root).exists():
        keys.server_pair(state.root)
    if not _runs(state):
        if settings.bind.startswith("tcp://"):
            host, port = tcp_parts(settings.bind)
            _check_address(f"cannot listen on {settings.bind}", host, port, SOCKET_HINT)
        if settings.metrics_port:
            refusal = f"metrics cannot be served at {settings.metrics_host}:{settings.metrics_port}"
            _check_address(refusal, settings.metrics_host, settings.metrics_port, "choose another metrics_port, or 0 for none")


def _check_folder(root: Path) -> None:
    """Check that the state folder is usable, or can be created."""
    hint = "choose another one with --state-dir"
    nearest = root
    try:
        while not nearest.exists():
            nearest = nearest.parent
        if len(os.fsencode(root.name)) > 255:
            raise InvalidInput(f"cannot use {root} as the state folder: File name too long", hint=hint)
        if not nearest.is_dir():
            raise InvalidInput(f"cannot use {root} as the state folder: {nearest} is not a folder", hint=hint)
        if nearest != root and not os.access(nearest, os.W_OK | os.X_OK):
            raise InvalidInput(f"cannot use {root} as the state folder: {nearest} cannot be written by this user", hint=hint)
    except OSError as error:
        raise InvalidInput(f"cannot use {root} as the state folder: {error.strerror}", hint=hint) from None


def _runs(state: StateFolder) -> bool:
    """Whether a daemon holds the lock of the state folder."""
    try:
        descriptor = os.open(state.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _check_address(refusal: str, host: str, port: int, hint: str) -> None:
    """Check that the address belongs to this machine and is free. ZeroMQ resolves the names of network interfaces itself."""
    if host in (name for _, name in socket.if_nameindex()):
        return
    end = time.monotonic() + FREE_S
    while True:
        try:
            candidates = socket.getaddrinfo(None if host in ("*", "") else host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _, address = candidates[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
            return
        except (OSError, UnicodeError) as error:
            if not (isinstance(error, OSError) and error.errno == errno.EADDRINUSE and time.monotonic() < end):
                raise InvalidInput(f"{refusal}: {getattr(error, 'strerror', None) or error}", hint=hint) from None
        time.sleep(0.05)
