"""Which keys are let in: the daemon's view of the list in STATE_DIR/keys/clients, and the ZAP handler that ZeroMQ asks in a handshake.

The list is looked at again for every request of a key (one `stat` of its folder), so a key that was removed, or given another role, is
so at once, on open connections as well. A file that cannot be read lets nobody in.
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
LOOK_S = 1.0  # between two looks at the files themselves: one that was edited in place leaves its folder as it was
TICK_NS = 50_000_000
NEVER = (0, 0)
REFUSALS = 20  # logged in a minute, so that nobody fills the log with them
log = logging.getLogger("offrld.auth")

Mark = tuple[int, int, int, int]
Changed = Callable[[str, str, str], object]  # action, name, role


class AllowList:
    """Public key -> entry, kept up to date. ``changed(action, name, role)`` is called for every difference after the first reading."""

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
        """The entry of a key as of now; None where it is not let in."""
        try:
            found = os.stat(self._folder)
            if (found.st_ino, found.st_mtime_ns) != self._seen:
                self.refresh()
        except OSError as error:
            self._lost(error)
        return self._by_public.get(public)

    def refresh(self) -> None:
        """Read what has changed in the folder; the files that have not are not opened."""
        files: dict[str, tuple[Mark, keys.Entry | None]] = {}
        try:
            folder = os.stat(self._folder)
            for name, mark in self._marks():
                known = self._files.get(name)
                files[name] = known if known is not None and known[0] == mark else (mark, _read(self._folder / name))
        except OSError as error:
            self._lost(error)
            return
        # A folder that has just changed may change again within the same tick of the clock: it is looked at again the next time.
        settled = not 0 <= time.time_ns() - folder.st_mtime_ns < TICK_NS
        self._files, self._seen = files, (folder.st_ino, folder.st_mtime_ns) if settled else NEVER
        by_public: dict[str, keys.Entry] = {}
        for name in sorted(files):
            entry = files[name][1]
            if entry is not None and by_public.setdefault(entry.public, entry) is not entry:
                log.error("key %r is the key of %r as well: passed over", entry.name, by_public[entry.public].name)
        self._tell({entry.name: entry for entry in self._by_public.values()}, {entry.name: entry for entry in by_public.values()})
        self._by_public = by_public

    async def watch(self) -> None:
        """Look at the files themselves now and then, for ever."""
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
        """The files of the list, each with what changes when it does."""
        with os.scandir(self._folder) as items:
            for number, item in enumerate(item for item in items if item.name.endswith(".toml") and not item.name.startswith(".")):
                if number == keys.MAX_CLIENTS:
                    log.error("%s holds more than %d keys: the rest is passed over", self._folder, keys.MAX_CLIENTS)
                    return
                found = item.stat(follow_symlinks=False)
                yield item.name, (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)

    def _lost(self, error: OSError) -> None:
        """The list cannot be read: nobody is let in until it can. Where only descriptors are lacking it stays what it was."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return
        if self._by_public:
            log.error("%s cannot be read (%s): no key is let in", self._folder, error.strerror)
        self._by_public, self._files, self._seen = {}, {}, NEVER

    def _tell(self, old: dict[str, keys.Entry], new: dict[str, keys.Entry]) -> None:
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
        log.error("a key is not let in: %s", error)
        return None


class Authenticator:
    """Answers ZeroMQ's authentication requests, and maps a request to the owner of its key."""

    def __init__(self, allowed: AllowList) -> None:
        self.allowed = allowed
        self._refused = (0.0, 0)  # start of the minute, refusals in it

    def caller(self, public: str, address: str) -> Caller:
        """Who sent a message, as of now; `NotAllowed` where its key has been removed since its connection was made."""
        entry = self.allowed.find(public)
        if entry is None:
            raise NotAllowed("this key is not let in any more", hint=keys.NEW_HINT)
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
        """Route, "", version, id, domain, address, identity, mechanism, key; back: route, "", version, id, status, text, user, metadata."""
        if len(frames) != 9 or frames[2] != b"1.0":
            log.error("ZeroMQ asked for a key in a way that is not known: %d frames", len(frames))
            return [*frames[:4], b"500", b"", b"", b""]
        domain, address, mechanism, public = frames[4], frames[5].decode(errors="replace"), frames[7], frames[8].hex()
        entry = self.allowed.find(public) if (domain, mechanism) == (ZAP_DOMAIN, b"CURVE") else None
        if entry is None:
            self._log_refusal(public, address)
            return [*frames[:4], b"400", b"", b"", b""]
        log.debug("key %r (%s) connected from %s", entry.name, entry.role, address)
        return [*frames[:4], b"200", b"", entry.public.encode(), b""]
