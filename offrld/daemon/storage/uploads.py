"""Uploads: files arrive in checksummed chunks beside the datasets and become usable only when they are whole.

``uploads/ID/manifest.json`` lists the expected files, ``owner`` names the owner, ``files/`` holds what has arrived, ``finished`` marks that
everything arrived and was checked. Only the owner or an operator may continue or use an upload. An acknowledged chunk survives the daemon.
When `finish` returns, the bytes are safely on disk (synced, SHA-256 compared); it detects what a power cut damaged earlier, and the client
sends that again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offrl.errors import Conflict, DiskFull, InvalidInput, LimitReached, NotAllowed, Unknown
from offrl.job import JOB_PATTERN
from offrl.wire import FileEntry, UploadInfo
from offrl_store.disk import sync_folder, write_all, write_atomic, write_synced
from offrld.daemon.access.caller import Caller
from offrld.daemon.access.roles import OPERATOR
from offrld.state.below import open_below, relative_parts

IDLE_S = 10.0  # without a request, after which an upload may give way to another one of its owner
log = logging.getLogger("offrld.uploads")


class Uploads:
    """The staging folder. All methods read or write files: call them in a thread, one at a time for each upload."""

    def __init__(self, folder: Path, *, limit: int = 64, limit_per_owner: int = 0, keep_free: int = 256 << 20) -> None:
        self._folder = folder
        self._limit, self._limit_per_owner = limit, limit_per_owner
        self._beginning = threading.Lock()  # one thread at a time counts and begins uploads
        self._keep_free = keep_free
        self._sizes: dict[str, dict[str, int]] = {}  # upload -> path -> declared size, for those in use
        self._used: dict[str, float] = {}  # upload -> time of the last request, by the monotonic clock
        self._busy: Counter[str] = Counter()  # upload -> requests that are working on it
        self._owners: dict[str, str] = {}  # upload -> name of who began it
        self._hashes: dict[str, dict[str, tuple[Any, int]]] = {}  # upload -> path -> SHA-256 of its first bytes, and how many

    def open(self, upload: str, files: list[FileEntry], caller: Caller) -> dict[str, int]:
        """Begin or continue an upload; return the bytes received per path. Raises `InvalidInput`, `Conflict`, `DiskFull`, `NotAllowed`."""
        wanted = [file.model_dump() for file in files]
        folder = self._folder / upload
        with self._beginning:  # the upload must not give way to another one meanwhile
            if (folder / "manifest.json").exists():
                self.check_owner(upload, caller)
                if self._manifest(upload) != wanted:
                    raise Conflict(f"upload {upload} was begun with other files", hint="take a new id")
                os.utime(folder)  # it is in use
                self._used[upload] = time.monotonic()
                return {file.path: self._received(upload, file.path) for file in files}
        _check_names([file.path for file in files])
        with self._beginning:
            self._check_limits(caller)
            self._begin(folder, files, caller)
        self._used[upload] = time.monotonic()
        return {file.path: 0 for file in files}

    def _check_limits(self, caller: Caller) -> None:
        """Raise `LimitReached` if the limits allow no other upload.

        An idle upload counts for its owner alone, and gives way to a new one of the same owner. Whoever has less than an equal share of
        the uploads may begin one more.
        """
        unfinished = self._unfinished()
        hint = "try again when one of them has finished; `offrl uploads ls` lists them, `offrl uploads rm ID` removes one"
        name, most = ("open_per_owner", self._limit_per_owner) if self._limit_per_owner else ("open", self._limit)
        own = [upload for upload in unfinished if self._owner(upload) == caller.name]
        while len(own) >= most:
            idle = [upload for upload in own if not self._active(upload)]
            if not idle:
                whose = f"{caller.name!r} has {len(own)} uploads" if self._limit_per_owner else f"{len(own)} uploads are"
                raise LimitReached(f"{whose} under way, as many as uploads.{name} = {most} allows", hint=hint)
            oldest = min(idle, key=lambda upload: self._last(upload))
            log.info("upload %s of %r, idle for %.0f s, gives way to a new one", oldest, caller.name, self._age_s(oldest))
            self.remove(oldest)
            own.remove(oldest)
        active = Counter(self._owner(upload) for upload in self._unfinished() if self._active(upload))
        mine, count = active.pop(caller.name, 0), active.total()
        if mine + count >= self._limit and mine >= max(1, self._limit // (len(active) + 1)):  # nobody can take all uploads from the others
            raise LimitReached(f"{mine + count} uploads are under way, as many as uploads.open = {self._limit} allows", hint=hint)

    def _active(self, upload: str) -> bool:
        """Whether the upload was continued in the last `IDLE_S` seconds."""
        return upload in self._busy or self._age_s(upload) < IDLE_S

    def _age_s(self, upload: str) -> float:
        """Seconds since the last request."""
        return time.monotonic() - self._last(upload)

    def _last(self, upload: str) -> float:
        """Time of the last request, by the monotonic clock.

        No upload is lost because the machine's time was wrong and was corrected: the wall clock is asked only about those of a former
        daemon, and only once, when they are seen first.
        """
        if upload not in self._used:
            folder = self._folder / upload
            try:
                paths: list[str | os.PathLike[str]] = [folder, *_files(folder)]
                newest = max(os.stat(path).st_mtime for path in paths)
            except OSError:
                newest = time.time()
            self._used.setdefault(upload, time.monotonic() - max(0.0, time.time() - newest))
        return self._used[upload]

    @contextmanager
    def _going_on(self, upload: str) -> Iterator[None]:
        """Mark an upload as in use: it gives way to no other, and counts as idle from the end on."""
        self._busy[upload] += 1
        try:
            yield
        finally:
            self._busy[upload] -= 1
            if not self._busy[upload]:
                del self._busy[upload]
            if upload in self._used:
                self._used[upload] = time.monotonic()

    def _begin(self, folder: Path, files: list[FileEntry], caller: Caller) -> None:
        """Create the folder of an upload, if the disk has room for it."""
        size = sum(file.size for file in files)
        free = self._free()
        if size > free:
            raise DiskFull(f"the upload needs {size} bytes, {max(free, 0)} are free on the daemon's disk", hint="free some space there")
        shutil.rmtree(folder, ignore_errors=True)  # left by a beginning that was never acknowledged
        for file in files:
            (folder / "files").joinpath(*relative_parts(file.path)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in files:
            os.close(open_below(folder / "files", file.path, os.O_WRONLY | os.O_CREAT))
        write_synced(folder / "owner", caller.name.encode())  # a power cut must not make the upload somebody else's
        self._owners[folder.name] = caller.name
        wanted = [file.model_dump() for file in files]
        write_atomic(folder / "manifest.json", json.dumps(wanted).encode())  # last: the upload exists from now on
        sync_folder(self._folder)

    def _free(self) -> int:
        """Return the bytes that uploads may still fill."""
        return shutil.disk_usage(self._folder).free - self._keep_free

    def write(self, upload: str, path: str, offset: int, data: bytes | memoryview, crc32: int, caller: Caller) -> int:
        """Append a chunk; return the bytes received of that file. A chunk that is sent again (its reply was lost) is acknowledged again."""
        self.check_owner(upload, caller)
        with self._going_on(upload):
            return self._write(upload, path, offset, data, crc32)

    def _write(self, upload: str, path: str, offset: int, data: bytes | memoryview, crc32: int) -> int:
        if zlib.crc32(data) != crc32:
            raise InvalidInput(f"the chunk of {path!r} at byte {offset} arrived damaged (its CRC-32 differs)", hint="send it again")
        size = self._declared(upload).get(path)
        if size is None:
            raise Unknown(f"upload {upload} has no file {path!r}", hint="open_upload lists the files before their bytes")
        if (self._folder / upload / "finished").exists():
            raise Conflict(f"upload {upload} is finished")
        try:
            descriptor = open_below(self._folder / upload / "files", path, os.O_WRONLY)
        except OSError as error:
            raise Unknown(f"upload {upload}: {path!r} is gone: {error.strerror}", hint="begin the upload again") from None
        try:
            received = os.fstat(descriptor).st_size
            if offset + len(data) > size:
                raise InvalidInput(f"{path!r} was declared with {size} bytes, the chunk ends at {offset + len(data)}")
            if offset > received:
                raise Conflict(f"a chunk of {path!r} begins at byte {offset}, {received} have arrived", hint=f"resume at byte {received}")
            fresh = memoryview(data)[received - offset :]  # earlier bytes were checked, and stay as they are
            if self._free() < len(fresh):
                raise DiskFull(f"upload {upload}: no space is left on the daemon's disk", hint="free some space there, then continue")
            write_all(descriptor, fresh, received)
            self._hash(upload, path, received, fresh)
            return received + len(fresh)
        finally:
            os.close(descriptor)

    def finish(self, upload: str, caller: Caller) -> None:
        """Check sizes and SHA-256, make everything durable, and mark the upload as usable. A damaged file is emptied, to be sent again."""
        self.check_owner(upload, caller)
        try:
            with self._going_on(upload):
                self._finish(upload)
        except FileNotFoundError:  # a repeated request: an import has used the upload in the meantime
            raise Unknown(f"upload {upload} is gone: it was used or removed in the meantime", hint="begin the upload again") from None

    def _finish(self, upload: str) -> None:
        folder = self._folder / upload
        manifest = self._manifest(upload)
        if (folder / "finished").exists():
            return
        for entry in manifest:
            received = self._received(upload, entry["path"])
            if received != entry["size"]:
                raise Conflict(f"{entry['path']!r}: {received} of {entry['size']} bytes have arrived", hint=f"resume at byte {received}")
        for entry in manifest:
            descriptor = open_below(folder / "files", entry["path"], os.O_RDWR)
            with os.fdopen(descriptor, "r+b") as file:
                digest, length = self._hashes.get(upload, {}).get(entry["path"], (None, 0))
                if digest is None or length != entry["size"]:  # an earlier daemon received some chunks
                    digest = hashlib.file_digest(file, "sha256")
                if digest.hexdigest() != entry["sha256"]:
                    file.truncate(0)
                    self._hashes.pop(upload, None)
                    raise InvalidInput(f"{entry['path']!r} arrived damaged (its SHA-256 differs)", hint="send it again from byte 0")
                os.fsync(file.fileno())
        for inner, _folders, _files in os.walk(folder / "files"):
            sync_folder(Path(inner))
        write_atomic(folder / "finished", b"")
        self._used[upload] = time.monotonic()
        self._sizes.pop(upload, None)
        self._hashes.pop(upload, None)

    def known(self, upload: str) -> bool:
        """Whether the upload exists."""
        return (self._folder / upload / "manifest.json").exists()

    def check_owner(self, upload: str, caller: Caller) -> None:
        """Raise `NotAllowed` if the upload belongs to somebody else and the caller is not an operator, `Unknown` if it does not exist."""
        if upload not in self._owners:
            self._manifest(upload)
        self._check_whose(upload, caller)

    def _check_whose(self, upload: str, caller: Caller) -> None:
        if self._owner(upload) != caller.name and not caller.may(OPERATOR):
            raise NotAllowed(f"{caller} may continue its own uploads only: {upload} is somebody else's", hint="take another id")

    def _owner(self, upload: str) -> str | None:
        """Return the owner of an upload; None for an upload of an older daemon, which belongs to the operators."""
        if upload not in self._owners:
            try:
                self._owners[upload] = (self._folder / upload / "owner").read_text()
            except FileNotFoundError:
                return None
        return self._owners[upload]

    def check_usable(self, upload: str, caller: Caller) -> None:
        """Raise `Unknown`, `Conflict` or `NotAllowed` if an import could not read the upload."""
        self.check_owner(upload, caller)
        self._manifest(upload)
        if not (self._folder / upload / "finished").exists():
            raise Conflict(f"upload {upload} is not finished", hint="send the rest, then finish_upload")

    def unfinished(self) -> int:
        """Return the number of unfinished uploads."""
        return len(self._unfinished())

    def _unfinished(self) -> list[str]:
        return [upload.name for upload in self._folder.iterdir() if not (upload / "finished").exists()]

    def outstanding(self) -> tuple[int, int]:
        """Return the bytes of the active uploads: in total, and still to come."""
        total = left = 0
        for upload in filter(self._active, self._unfinished()):
            try:
                manifest = self._manifest(upload)
                total += sum(entry["size"] for entry in manifest)
                left += self._left(upload, manifest)
            except Unknown:  # just beginning, or removed
                continue
        return total, left

    def still_to_come(self, upload: str) -> int:
        """Return the bytes still to come that `outstanding` does not count, because the upload is idle. Raises `Unknown`."""
        if self._active(upload) or (self._folder / upload / "finished").exists():
            return 0
        return self._left(upload, self._manifest(upload))

    def _left(self, upload: str, manifest: list[dict[str, Any]]) -> int:
        return sum(entry["size"] - self._received(upload, entry["path"]) for entry in manifest)

    def listing(self, caller: Caller) -> list[UploadInfo]:
        """List the uploads of the caller, or for an operator all uploads; the longest idle ones first."""
        uploads = []
        for upload in sorted(entry.name for entry in self._folder.iterdir() if re.fullmatch(JOB_PATTERN, entry.name)):
            owner = self._owner(upload)
            if owner != caller.name and not caller.may(OPERATOR):
                continue
            try:
                manifest = self._manifest(upload)
            except Unknown:  # just beginning, or left by a crash
                manifest = []
            size = sum(entry["size"] for entry in manifest)
            uploads.append(
                UploadInfo(
                    upload=upload,
                    owner=owner,
                    files=len(manifest),
                    size=size,
                    bytes=size - self._left(upload, manifest),
                    finished=(self._folder / upload / "finished").exists(),
                    age_s=round(self._age_s(upload), 3),
                )
            )
        return sorted(uploads, key=lambda info: (-info.age_s, info.upload))

    def check_removable(self, upload: str, caller: Caller) -> None:
        """Raise `Unknown` if the upload does not exist, `NotAllowed` if the caller may not remove it."""
        if not (self._folder / upload).is_dir():
            self._manifest(upload)  # raises Unknown
        self._check_whose(upload, caller)

    def remove(self, upload: str) -> None:
        """Delete an upload if it exists."""
        for table in (self._sizes, self._owners, self._hashes):
            table.pop(upload, None)
        self._used.pop(upload, None)
        shutil.rmtree(self._folder / upload, ignore_errors=True)

    def expired(self, age_s: float) -> list[str]:
        """Return the uploads that were idle for more than ``age_s`` seconds."""
        return [entry.name for entry in os.scandir(self._folder) if entry.name not in self._busy and self._age_s(entry.name) > age_s]

    def _hash(self, upload: str, path: str, offset: int, data: memoryview) -> None:
        """Add the bytes to the checksum while they are in memory: `finish` then need not read a gigabyte again."""
        digests = self._hashes.setdefault(upload, {})
        digest, length = digests.get(path) or (hashlib.sha256(), 0)
        if length == offset:
            digest.update(data)
            digests[path] = (digest, offset + len(data))

    def _manifest(self, upload: str) -> list[dict[str, Any]]:
        try:
            return json.loads((self._folder / upload / "manifest.json").read_bytes())
        except (OSError, ValueError):
            raise Unknown(f"no upload {upload!r}", hint="it was never begun, its import has used it, or it expired: upload again") from None

    def _declared(self, upload: str) -> dict[str, int]:
        if upload not in self._sizes:
            self._sizes[upload] = {entry["path"]: entry["size"] for entry in self._manifest(upload)}
        return self._sizes[upload]

    def _received(self, upload: str, path: str) -> int:
        try:
            descriptor = open_below(self._folder / upload / "files", path)
        except OSError:
            return 0
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)


def _files(folder: Path) -> list[str]:
    return [os.path.join(inner, name) for inner, _folders, names in os.walk(folder) for name in names]


def _check_names(paths: list[str]) -> None:
    """Check that every path is safe, that none occurs twice, and that none is a folder of another."""
    seen: set[tuple[str, ...]] = set()
    for path in paths:
        parts = relative_parts(path)
        if len(parts) > 32:
            raise InvalidInput(f"{path[:200]!r} is nested too deeply", hint="at most 32 levels")
        if parts in seen:
            raise InvalidInput(f"{path!r} occurs twice in the upload")
        seen.add(parts)
    for parts in seen:
        for length in range(1, len(parts)):
            if parts[:length] in seen:
                raise InvalidInput(f"{'/'.join(parts[:length])!r} is both a file and a folder in the upload")
