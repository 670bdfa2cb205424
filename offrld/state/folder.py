"""The daemon's state folder: the path of everything in it, its default location, its lock, and errors of the system there."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from offrl.address import user_folder
from offrl.errors import Conflict, DiskFull, InternalError, InvalidInput
from offrl_store.errors import OffrlError
from offrld.state.run_folder import RunFolder

RESTORING = ".restoring"  # exists while `offrl restore` fills the folder
UNFINISHED_DATASET = ".tmp-"  # prefix of a dataset that an import job has not finished; the job's id follows
FOLDER_HINT = "check its owner, its mode, and whether its disk is mounted read-only; nothing that was acknowledged is lost"
SOCKET_LIMIT = 107  # most bytes of a unix socket's path: sun_path of Linux without its final zero


@dataclass(frozen=True)
class StateFolder:
    """The paths of one state folder."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "offrld.toml"

    @property
    def runtime(self) -> Path:
        """The folder of the running daemon: its socket, its lock, and its workers."""
        return self.root / "run"

    @property
    def socket(self) -> Path:
        return self.runtime / "offrld.sock"

    @property
    def lock_file(self) -> Path:
        return self.runtime / "offrld.lock"

    @property
    def audit(self) -> Path:
        """The audit log; older parts beside it have a number."""
        return self.root / "audit.log"

    @property
    def database(self) -> Path:
        return self.root / "queue.sqlite"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    def dataset(self, name: str) -> Path:
        """The store of a dataset."""
        return self.datasets / name

    def unfinished_dataset(self, job: str) -> Path:
        """The store that an import job fills before it gets its name."""
        return self.datasets / f"{UNFINISHED_DATASET}{job}"

    @property
    def uploads(self) -> Path:
        return self.root / "uploads"

    def upload(self, upload: str) -> Path:
        return self.uploads / upload

    def upload_files(self, upload: str) -> Path:
        """The files of an upload, as the client named them."""
        return self.uploads / upload / "files"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def run(self, job: str) -> RunFolder:
        """The run folder of a job."""
        return RunFolder(self.jobs / job)

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def inductor_cache(self) -> Path:
        """Compiled updates."""
        return self.cache / "inductor"

    @property
    def policy_templates(self) -> Path:
        """Traced graphs of policies, which later exports reuse."""
        return self.cache / "policies"

    @property
    def packed(self) -> Path:
        """Files made from run folders for downloads: archives, and links that keep a file while it is read."""
        return self.cache / "packed"

    @property
    def backups(self) -> Path:
        """Frozen files of backups that a client is copying."""
        return self.cache / "backup"

    def prepare(self, group: int | None = None) -> None:
        """Make the folders; only this user, and ``group``, may enter ``run``. Raises `InvalidInput`."""
        self.check_restored()
        try:
            for folder in (self.root, self.runtime, self.datasets, self.uploads, self.jobs, self.cache, self.packed, self.backups):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if group is None:
                self.runtime.chmod(0o700)
            else:
                for folder, mode in (
                    (self.root, 0o710),
                    (self.runtime, 0o750),
                ):  # pass through root, enter run
                    os.chown(folder, -1, group)
                    folder.chmod(mode)
        except OSError as error:
            raise InvalidInput(
                f"cannot use {self.root} as the state folder: {error.strerror}", hint="choose another one with --state-dir"
            ) from None

    def check_restored(self) -> None:
        """Raise `InvalidInput` during a restore, and after an interrupted one."""
        if (self.root / RESTORING).exists():
            raise InvalidInput(f"{self.root} is being restored, or a restore was cut short", hint="empty the folder, then `offrl restore`")

    def check(self) -> None:
        """Check, before anything changes, that everything in the folder can be read and written; `InvalidInput` names what cannot."""
        for path in (self.root, self.runtime, self.datasets, self.uploads, self.jobs, self.cache, self.packed, self.database):
            needed = os.R_OK | os.W_OK | (os.X_OK if path != self.database else 0)
            if path.exists() and not os.access(path, needed):
                where = "is on a disk that is read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "cannot be written by this user"
                raise InvalidInput(f"cannot use {self.root} as the state folder: {path} {where}", hint=FOLDER_HINT)

    def lock(self) -> int:
        """Lock the folder for the life of this process; return the descriptor. Raises `Conflict` if another daemon has the lock."""
        path = self.lock_file
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
    """Return the error to report if the system refused access to ``what``; None for any other `OSError`."""
    path = error.filename or what
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"the daemon's disk is full: {path}", hint="free some space there; nothing that was acknowledged is lost")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO):
        return InternalError(f"the daemon cannot use {path}: {error.strerror}", hint=FOLDER_HINT)
    return None


def default_state_dir() -> Path:
    """Return $OFFRLD_STATE_DIR, else a writable /var/lib/offrld for root, else $XDG_STATE_HOME/offrld or ~/.local/state/offrld.

    Raises `InvalidInput` for a user without a home.
    """
    if named := os.environ.get("OFFRLD_STATE_DIR"):
        return Path(named)
    machine = Path("/var/lib/offrld")
    if os.geteuid() == 0 and machine.is_dir() and os.access(machine, os.W_OK):
        return machine
    base = user_folder("XDG_STATE_HOME", ".local", "state")
    if base is None:
        raise InvalidInput("this user has no home for a state folder", hint="name it with --state-dir or OFFRLD_STATE_DIR, or set HOME")
    return Path(base) / "offrld"
