"""The state folder: where everything stands in it, its lock, and names below it that cannot leave it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from offrl.errors import Conflict, DiskFull, InternalError, InvalidInput
from offrl_store.errors import OffrlError

RESTORING = ".restoring"  # there while `offrl restore` fills the folder
FOLDER_HINT = "see its owner, its mode, and whether its disk is mounted read-only; nothing that was acknowledged is lost"
SOCKET_LIMIT = 107  # bytes of a unix socket's path: sun_path of Linux less its final zero


@dataclass(frozen=True)
class State:
    """Paths of one state folder."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def socket(self) -> Path:
        return self.run / "offrld.sock"

    @property
    def audit(self) -> Path:
        """The audit log; older parts beside it, with a number."""
        return self.root / "audit.log"

    @property
    def database(self) -> Path:
        return self.root / "queue.sqlite"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def packed(self) -> Path:
        """What the daemon made out of run folders for a download: archives, and links that keep a file while it is read."""
        return self.cache / "packed"

    @property
    def backups(self) -> Path:
        """What is frozen for back-ups that are being copied."""
        return self.cache / "backup"

    def job(self, job: str) -> Path:
        return self.jobs / job

    def events(self, job: str) -> Path:
        return self.jobs / job / "events.jsonl"

    def log(self, job: str) -> Path:
        return self.jobs / job / "log.txt"

    def prepare(self, group: int | None = None) -> None:
        """Make the folders; only this user, and ``group``, may enter ``run``. `InvalidInput` where that is not possible."""
        if (self.root / RESTORING).exists():
            raise InvalidInput(f"{self.root} is being restored, or a restore was cut short", hint="empty the folder, then `offrl restore`")
        try:
            for folder in (self.root, self.run, self.datasets, self.uploads, self.jobs, self.cache, self.packed, self.backups):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if group is None:
                self.run.chmod(0o700)
            else:
                for folder, mode in ((self.root, 0o710), (self.run, 0o750)):  # through the one, into the other
                    os.chown(folder, -1, group)
                    folder.chmod(mode)
        except OSError as error:
            raise InvalidInput(
                f"cannot use {self.root} as the state folder: {error.strerror}", hint="choose another one with --state-dir"
            ) from None

    def check(self) -> None:
        """That everything in it can be read and written, before anything is changed; `InvalidInput` names the first that cannot."""
        for path in (self.root, self.run, self.datasets, self.uploads, self.jobs, self.cache, self.packed, self.database):
            needed = os.R_OK | os.W_OK | (os.X_OK if path != self.database else 0)
            if path.exists() and not os.access(path, needed):
                where = "is on a disk that is read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "cannot be written by this user"
                raise InvalidInput(f"cannot use {self.root} as the state folder: {path} {where}", hint=FOLDER_HINT)

    def lock(self) -> int:
        """Take the lock of the folder for the life of this process; `Conflict` where another daemon has it. Returns its descriptor."""
        path = self.run / "offrld.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput(f"cannot open {path}: {error.strerror}", hint="choose another state folder with --state-dir") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise Conflict(
                f"another daemon (process {other or 'unknown'}) serves {self.root}",
                hint="stop it first, or choose another state folder with --state-dir",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor


def refused(error: OSError, what: str) -> OffrlError | None:
    """What the system has refused while ``what`` was done, as an error for the user; None where it is none of its refusals."""
    path = error.filename or what
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the daemon's disk is full: {path}", hint="free some space there; nothing that was acknowledged is lost")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return InternalError(f"the daemon cannot use {path}: {error.strerror}", hint=FOLDER_HINT)
    return None


def default_state_dir() -> Path:
    """$OFFRLD_STATE_DIR; for root an existing, writable /var/lib/offrld; else $XDG_STATE_HOME/offrld or ~/.local/state/offrld."""
    if named := os.environ.get("OFFRLD_STATE_DIR"):
        return Path(named)
    machine = Path("/var/lib/offrld")
    if os.geteuid() == 0 and machine.is_dir() and os.access(machine, os.W_OK):
        return machine
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(base) / "offrld"


def relative_parts(path: str) -> tuple[str, ...]:
    """The parts of a relative path that stays where it is; `InvalidInput` for anything absolute, "..", or odd."""
    parts = tuple(path.split("/"))
    for part in parts:
        if part in ("", ".", "..") or len(os.fsencode(part)) > 255 or "\\" in part or any(ord(c) < 32 or ord(c) == 127 for c in part):
            raise InvalidInput(f"{path[:200]!r} is not a path that may be used here", hint="relative, '/' between the parts, without '..'")
    return parts


def open_below(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """Open the regular file ``path`` below ``root`` without following a symbolic link in any part of it; `OSError` where that fails."""
    *folders, name = relative_parts(path)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(22, "not a regular file")
    return descriptor
