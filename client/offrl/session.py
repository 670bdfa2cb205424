"""`Session`: requests to one daemon over a connection, and further connections to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

from offrl import address, wire
from offrl.connection import Connection


class Session:
    """A daemon's address, how to connect there, and a connection. `offrl.client.Client` documents the arguments."""

    def __init__(
        self,
        url: str | None = None,
        *,
        timeout: float = 60.0,
        patience: float = 60.0,
        key: str | os.PathLike[str] | None = None,
        lost: Callable[[bool], None] | None = None,
    ) -> None:
        self.url = address.resolve(url)
        self._timeout, self._patience, self._key, self._lost = timeout, patience, key, lost
        self.connection = self.connect()

    def request(self, request: wire.Request[wire.ReplyT], *, timeout: float | None = None) -> wire.ReplyT:
        """Send any request of `offrl.wire` and return its reply; raise the error that the daemon sent."""
        return self.connection.request(request, timeout=timeout)

    def connect(self) -> Connection:
        """Open another connection to the same daemon, for long waits; the caller closes it."""
        return Connection(self.url, timeout=self._timeout, patience=self._patience, key=self._key, lost=self._lost)

    def again(self, patience: float | None = None) -> Self:
        """Make another client of the same daemon, for another thread; the caller closes it."""
        return type(self)(self.url, timeout=self._timeout, patience=self._patience if patience is None else patience, key=self._key)

    def close(self) -> None:
        """Close the connection. May be called twice."""
        if hasattr(self, "connection"):
            self.connection.close()

    def __reduce__(self) -> Any:
        return _reopened, (type(self), self.url, self._timeout, self._patience, self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def _reopened(kind: type[Session], url: str, timeout: float, patience: float, key: str | os.PathLike[str] | None) -> Session:
    """Open a session that was pickled."""
    return kind(url, timeout=timeout, patience=patience, key=key)
