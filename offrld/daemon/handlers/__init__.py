"""The request handlers, by subject: the function ``get_job`` of one of these files answers the request ``get_job``.

Each is ``handler(app, request) -> reply``, most of them async.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

from offrl import wire
from offrld.daemon.app import App
from offrld.daemon.handlers import artifacts, backups, care, datasets, follow, jobs, queue, service, uploads

Handler = Callable[[App, Any], wire.Reply | Awaitable[wire.Reply]]
FILES: tuple[ModuleType, ...] = (artifacts, backups, care, datasets, follow, jobs, queue, service, uploads)


def _handler(kind: type[wire.Request[Any]]) -> Handler:
    name = kind.model_fields["type"].default
    (file,) = [file for file in FILES if getattr(getattr(file, name, None), "__module__", None) == file.__name__]
    handler: Handler = getattr(file, name)
    return handler


HANDLERS: dict[type[wire.Request[Any]], Handler] = {kind: _handler(kind) for kind in wire.REQUESTS}
