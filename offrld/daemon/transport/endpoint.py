"""One listening address: its transport (ipc with file permissions, tcp with CURVE keys), and the caller of each message.

Each address has its own socket: the caller follows from the socket, never from the content of a message.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
from functools import lru_cache
from pathlib import Path
from typing import Any

from offrl import keys
from offrl.errors import InvalidInput
from offrld.daemon.access.caller import ANYONE, LOCAL, Caller
from offrld.daemon.transport.keys import Authenticator
from offrld.daemon.transport.local import FRAMES, LocalSocket, Peer
from offrld.daemon.transport.tcp import TcpSocket

PER_CLIENT = 64  # unanswered requests of one client; more are refused


class Endpoint:
    """A bound address. ``address`` is where it listens, with the real port instead of 0.

    Raises `InvalidInput` if the system refuses the address.
    """

    def __init__(
        self,
        url: str,
        *,
        authenticator: Authenticator | None = None,
        server_key: keys.KeyPair | None = None,
        local_role: str = "operator",
        group: str | None = None,
        max_connections: int = 1024,
        memory_bytes: int = 1 << 30,
    ) -> None:
        self._authenticator = authenticator
        self._group = None if group is None else group_id(group)
        self._local_role = local_role
        self._local = Caller(LOCAL, "operator") if url.startswith("ipc://") else Caller(ANYONE, local_role)
        self._socket: LocalSocket | TcpSocket
        if url.startswith("ipc://"):
            self._socket = LocalSocket(Path(url.removeprefix("ipc://")), group=self._group, most=max_connections)
        else:
            self._socket = TcpSocket(
                url,
                authenticator=authenticator,
                secret=None if server_key is None else server_key.secret,
                most=max_connections,
                memory_bytes=memory_bytes,
                per_client=PER_CLIENT,
            )
        self.receive, self.send, self.disconnect = self._socket.receive, self._socket.send, self._socket.disconnect

    @property
    def address(self) -> str:
        return self._socket.address

    def caller(self, sender: Any) -> Caller:
        """Return the caller of a message from the sender that `receive` returned. Raises `NotAllowed` if its key was removed."""
        if isinstance(sender, Peer):
            return self._local if self._group is None else self._member(sender.uid)
        return self._local if self._authenticator is None else self._authenticator.caller(*sender)

    async def watch(self) -> None:
        """Run what the address needs beside `receive`, for ever."""
        if isinstance(self._socket, TcpSocket):
            await self._socket.watch()
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._socket.close()

    def _member(self, uid: int) -> Caller:
        """Return the caller for a user of the group, whom the kernel identifies."""
        if uid in (0, os.geteuid()):
            return Caller(LOCAL, "operator", f"uid {uid}")
        return Caller(f"local:{_user(uid)}", self._local_role, f"uid {uid}")


def group_id(name: str) -> int:
    """Return the number of a group. Raises `InvalidInput`."""
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise InvalidInput(f"socket_group: no group {name!r} on this machine", hint=f"sudo groupadd --system {name}") from None


@lru_cache(1024)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


__all__ = ["FRAMES", "PER_CLIENT", "Endpoint", "group_id"]
