"""Who asks: the caller of the request that is being answered, for every function that the answer takes part in."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from offrl.keys import ROLES


@dataclass(frozen=True)
class Caller:
    """Name and role of who asks. ``public`` is the key's (with one), ``address`` where it connects from, as far as that is known."""

    name: str
    role: str
    address: str = ""
    public: str = ""

    def may(self, least: str) -> bool:
        """Whether the role is ``least`` or more."""
        return ROLES.index(self.role) >= ROLES.index(least)

    def __str__(self) -> str:
        return f"key {self.name!r} ({self.role})" if self.public else f"{self.name!r} ({self.role})"


LOCAL = "local"  # on the socket that only the service's own user (and root) can open
ANYONE = "anyone"  # on a tcp address without keys
SERVICE = Caller("offrld", "operator")  # outside of a request: the daemon itself
current: ContextVar[Caller] = ContextVar("caller", default=SERVICE)
