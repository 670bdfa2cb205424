"""The caller of the current request, available to every function that helps to answer it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from offrl.keys import ROLES


@dataclass(frozen=True)
class Caller:
    """Name and role of a caller. ``public``: its public key, if it has one; ``address``: where it connects from, if known."""

    name: str
    role: str
    address: str = ""
    public: str = ""

    def may(self, least: str) -> bool:
        """Whether the role is at least ``least``."""
        return ROLES.index(self.role) >= ROLES.index(least)

    def __str__(self) -> str:
        return f"key {self.name!r} ({self.role})" if self.public else f"{self.name!r} ({self.role})"


LOCAL = "local"  # on the socket that only the service's own user (and root) can open
ANYONE = "anyone"  # on a tcp address without keys
SERVICE = Caller("offrld", "operator")  # the daemon itself, outside of a request
current: ContextVar[Caller] = ContextVar("caller", default=SERVICE)
