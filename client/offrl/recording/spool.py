"""The spool: a folder in which episodes wait for the daemon, as small stores, and a note of what is being sent.

``active-N`` is the store that is being written, step by step, and durable up to its last sync; ``ready-N`` are whole stores, sent one after
the other, in the order of N, and deleted when the daemon has them. ``spool.json`` holds the spool's own id, the dataset, and the attempt at
sending: a segment's job is submitted under a key made of id, segment and attempt, with the upload noted before, so that a reply that was
lost, or a process that died, gives the same job again and no episode arrives twice. Where that job has been removed meanwhile, the episodes
themselves tell: their metadata hold the spool's id and the segment, and what the dataset has of a segment is not appended again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from offrl.errors import InvalidInput, StoreLocked
from offrl_store import EpisodeStore
from offrl_store.disk import disk_errors, publish, write_atomic

NOTES = "spool.json"
VERSION = 1


class Spool:
    """A spool, locked for this process until `close`.

    Args:
        folder: made where it does not exist.
        dataset: where its episodes go; None: as it was made (to send what is left).

    Raises:
        InvalidInput: the folder is no spool, or one of another dataset.
        StoreLocked: another process records into it, or sends it.
    """

    def __init__(self, folder: str | os.PathLike[str], dataset: str | None = None) -> None:
        self.folder = Path(folder)
        notes = self.folder / NOTES
        if dataset is None and not notes.exists():
            raise InvalidInput(f"{self.folder} is no spool", hint="give the folder of a recorder: it holds spool.json")
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process, self._highest = os.getpid(), 0
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLocked(f"another process has the spool {self.folder}", hint="end its recorder first") from None
            self._notes = self._read(notes, dataset)
            self.dataset: str = self._notes["dataset"]
            self.id: str = self._notes["spool"]
            self._recover()
        except BaseException:
            self.close()
            raise

    def _read(self, notes: Path, dataset: str | None) -> dict[str, Any]:
        if not notes.exists():
            made = {"version": VERSION, "spool": uuid.uuid4().hex, "dataset": dataset, "sent": 0, "sending": None}
            self._write(made)
            return made
        try:
            found = json.loads(notes.read_text())
            whole = isinstance(found, dict) and found["version"] == VERSION and {"spool", "dataset", "sent", "sending"} <= found.keys()
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"{notes} cannot be read: {error}", hint="its episodes are in ready-*, each a store") from None
        if not whole:
            raise InvalidInput(f"{notes} is of another version", hint="send it with the version of offrl that wrote it")
        if dataset is not None and found["dataset"] != dataset:
            raise InvalidInput(
                f"the spool {self.folder} holds episodes of {found['dataset']!r}", hint="give each dataset a spool of its own"
            )
        return found

    def _recover(self) -> None:
        """Takes in what a process that died has left: its open episode ends as truncated."""
        for number, path in self._segments("active"):
            try:
                store = EpisodeStore.open(path)
            except InvalidInput:  # it died while the store was being made: nothing is in it
                shutil.rmtree(path)
                continue
            with store.writer() as writer:
                for env, steps in writer.open_episodes.items():
                    if steps:
                        writer.end(env=env, metadata={"recorder": self.id, "segment": number, "cut": "the recording process ended"})
                    else:
                        writer.discard(env)
            self.seal(number)
        for number, path in self._segments("ready"):
            if number <= self._notes["sent"]:
                shutil.rmtree(path)

    # ------------------------------------------------------------------------------------------------------------- segments
    def _segments(self, kind: str) -> list[tuple[int, Path]]:
        found = [(int(path.name.removeprefix(f"{kind}-")), path) for path in self.folder.glob(f"{kind}-*")]
        return sorted(found)

    def ready(self) -> list[tuple[int, Path]]:
        """The segments that wait to be sent, the oldest first."""
        return self._segments("ready")

    def begin_segment(self) -> tuple[int, Path]:
        """The number and the folder, which does not exist yet, of the next store. A spool that somebody has removed is made again: what
        comes now is kept."""
        if not (self.folder / NOTES).exists():
            self._restore()
        numbers = [number for kind in ("active", "ready") for number, _ in self._segments(kind)]
        self._highest = max([self._highest, self._notes["sent"], *numbers]) + 1  # no number twice: the daemon knows a segment by it
        return self._highest, self.folder / f"active-{self._highest:08d}"

    def _restore(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise StoreLocked(f"another process has the spool {self.folder}", hint="end its recorder first") from None
            os.close(self._lock)
            self._lock = lock
        self._write({**self._notes, "sending": None})

    def seal(self, number: int) -> None:
        """The store is whole: it may be sent. One without episodes is deleted."""
        active, ready = (self.folder / f"{kind}-{number:08d}" for kind in ("active", "ready"))
        with disk_errors(self.folder):
            if not len(EpisodeStore.open(active)):
                shutil.rmtree(active)
                return
            publish(active, ready)

    def size(self) -> int:
        """Bytes of all stores."""
        return size(self.folder)

    def drop_oldest(self) -> int:
        """Deletes the oldest segment that the daemon has nothing whole of; its number of episodes, 0 where there is none."""
        attempt = self._notes["sending"] or {}
        sending = attempt.get("segment") if attempt.get("upload") else None
        for number, path in self.ready():
            if number != sending:
                episodes = len(EpisodeStore.open(path))
                shutil.rmtree(path)
                return episodes
        return 0

    # -------------------------------------------------------------------------------------------------------------- sending
    @property
    def sending(self) -> dict[str, Any] | None:
        """The attempt under way: segment, try, append, the upload once it is whole, and the one that was begun before."""
        return self._notes["sending"]

    def note_sending(self, attempt: dict[str, Any]) -> None:
        """Durable before the job is submitted."""
        self._write({**self._notes, "sending": attempt})

    def note_sent(self, number: int) -> None:
        """The daemon has the segment."""
        self._write({**self._notes, "sent": number, "sending": None})
        shutil.rmtree(self.folder / f"ready-{number:08d}", ignore_errors=True)

    def _write(self, notes: dict[str, Any]) -> None:
        with disk_errors(self.folder):
            write_atomic(self.folder / NOTES, json.dumps(notes).encode())
        self._notes = notes

    def close(self) -> None:
        """Gives the spool free."""
        if self._lock >= 0:
            if os.getpid() == self._process:  # by name, not by closing alone: a process that was forked has the same lock open
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def size(folder: Path) -> int:
    """Bytes on the disk of all files below a folder, from which others may be deleted meanwhile."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(inner, name)).st_blocks * 512
    return total
