"""The accepted keys: the daemon's view of the list in STATE_DIR/keys/clients, and the ZAP handler that ZeroMQ calls in a handshake.

Every request with a key checks the list again (one `stat` of its folder), so a removed key or a new role takes effect at once, on open
connections, too. The key in an unreadable file is not accepted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from offrl import keys
from offrl.errors import InvalidInput, NotAllowed
from offrld.daemon.access.caller import Caller
from offrld.daemon.passes import Passes, forever

ZAP_DOMAIN = b"offrld"
LOOK_S = 1.0  # between two looks at the files themselves: an edit in place does not change the folder
TICK_NS = 50_000_000
NEVER = (0, 0)
REFUSALS = 20  # logged in a minute, so that nobody can flood the log
log = logging.getLogger("offrld.auth")

Mark = tuple[int, int, int, int]
Changed = Callable[[str, str, str], object]  # action, name, role


class AllowList:
    """Public key -> entry, kept up to date. Calls ``changed(action, name, role)`` for every change after the first reading."""

    def __init__(self, state_dir: Path, changed: Changed = lambda action, name, role: None, passes: Passes | None = None) -> None:
        self._passes = passes or Passes()
        keys.prepare(state_dir)
        self._folder = keys.clients_dir(state_dir)
        self._changed: Changed = lambda action, name, role: None
        self._seen = NEVER
        self._files: dict[str, tuple[Mark, keys.Entry | None]] = {}
        self._by_public: dict[str, keys.Entry] = {}
        self.refresh()
        self._changed = changed

    def __len__(self) -> int:
        return len(self._by_public)

    def find(self, public: str) -> keys.Entry | None:
        """Return the current entry of a key; None if the key is not accepted."""
        try:
            folder = os.stat(self._folder)
            if (folder.st_ino, folder.st_mtime_ns) != self._seen:
                self.refresh()
        except OSError as error:
            self._lost(error)
        return self._by_public.get(public)

    def refresh(self) -> None:
        """Read the changed files of the folder; unchanged files are not opened."""
        files: dict[str, tuple[Mark, keys.Entry | None]] = {}
        try:
            folder = os.stat(self._folder)
            for name, mark in self._marks():
                before = self._files.get(name)
                files[name] = before if before is not None and before[0] == mark else (mark, _read(self._folder / name))
        except OSError as error:
            self._lost(error)
            return
        # A folder that has just changed may change again within the same tick of the clock, so the next call reads it again.
        settled = not 0 <= time.time_ns() - folder.st_mtime_ns < TICK_NS
        self._files, self._seen = files, (folder.st_ino, folder.st_mtime_ns) if settled else NEVER
        by_public: dict[str, keys.Entry] = {}
        for name in sorted(files):
            entry = files[name][1]
            if entry is not None and by_public.setdefault(entry.public, entry) is not entry:
                log.error("key %r is the same as key %r and is ignored", entry.name, by_public[entry.public].name)
        self._report({entry.name: entry for entry in self._by_public.values()}, {entry.name: entry for entry in by_public.values()})
        self._by_public = by_public

    async def watch(self) -> None:
        """Look at the files themselves every `LOOK_S` seconds, for ever."""
        await forever(self._passes, "the list of keys", self._look, LOOK_S)

    async def _look(self) -> None:
        if await asyncio.to_thread(self._differs):
            self.refresh()

    def _differs(self) -> bool:
        try:
            return dict(self._marks()) != {name: mark for name, (mark, _) in self._files.items()}
        except OSError:
            return True

    def _marks(self) -> Iterator[tuple[str, Mark]]:
        """Yield the files of the list, each with a mark that changes with the file."""
        with os.scandir(self._folder) as items:
            for number, item in enumerate(item for item in items if item.name.endswith(".toml") and not item.name.startswith(".")):
                if number == keys.MAX_CLIENTS:
                    log.error("%s holds more than %d keys: the rest is ignored", self._folder, keys.MAX_CLIENTS)
                    return
                status = item.stat(follow_symlinks=False)
                yield item.name, (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)

    def _lost(self, error: OSError) -> None:
        """Accept no key until the list can be read again; but keep the list if only descriptors are lacking."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return
        if self._by_public:
            log.error("%s cannot be read (%s): no key is accepted", self._folder, error.strerror)
        self._by_public, self._files, self._seen = {}, {}, NEVER

    def _report(self, old: dict[str, keys.Entry], new: dict[str, keys.Entry]) -> None:
        for name in sorted(old.keys() | new.keys()):
            before, now = old.get(name), new.get(name)
            if now is None and before is not None:
                self._changed("key_removed", name, before.role)
            elif now is not None and (before is None or (before.public, before.role) != (now.public, now.role)):
                self._changed("key_changed" if before is not None else "key_added", name, now.role)


def _read(path: Path) -> keys.Entry | None:
    try:
        return keys.read_entry(path)
    except (InvalidInput, NotAllowed) as error:
        log.error("a key is not accepted: %s", error)
        return None


class Authenticator:
    """Answers ZeroMQ's authentication requests, and finds the owner of a request's key."""

    def __init__(self, allowed: AllowList) -> None:
        self.allowed = allowed
        self._refused = (0.0, 0)  # start of the minute, refusals in it

    def caller(self, public: str, address: str) -> Caller:
        """Return the caller of a message. Raises `NotAllowed` if its key was removed after the connection was made."""
        entry = self.allowed.find(public)
        if entry is None:
            raise NotAllowed("this key is not accepted any more", hint=keys.NEW_HINT)
        return Caller(entry.name, entry.role, address, entry.public)

    def _log_refusal(self, public: str, address: str) -> None:
        began, count = self._refused
        if time.monotonic() - began >= 60.0:
            if count > REFUSALS:
                log.warning("refused %d more keys that are not listed", count - REFUSALS)
            began, count = time.monotonic(), 0
        self._refused = (began, count + 1)
        if count < REFUSALS:
            log.warning("refused a key that is not listed: %s, from %s", public, address)

    def answer(self, frames: list[bytes]) -> list[bytes]:
        """Answer an authentication request.

        Request: route, "", version, id, domain, address, identity, mechanism, key. Answer: route, "", version, id, status, text, user,
        metadata.
        """
        if len(frames) != 9 or frames[2] != b"1.0":
            log.error("an authentication request of ZeroMQ has an unknown form: %d frames", len(frames))
            return [*frames[:4], b"500", b"", b"", b""]
        domain, address, mechanism, public = frames[4], frames[5].decode(errors="replace"), frames[7], frames[8].hex()
        entry = self.allowed.find(public) if (domain, mechanism) == (ZAP_DOMAIN, b"CURVE") else None
        if entry is None:
            self._log_refusal(public, address)
            return [*frames[:4], b"400", b"", b"", b""]
        log.debug("key %r (%s) connected from %s", entry.name, entry.role, address)
        return [*frames[:4], b"200", b"", entry.public.encode(), b""]
