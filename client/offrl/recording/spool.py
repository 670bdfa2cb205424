"""The spool: a folder in which episodes wait for the daemon as small stores (segments), with a note of the current attempt to send.

``active-N`` is the store being written step by step; it is durable up to its last sync. ``ready-N`` are complete stores, which are sent in
the order of N and deleted when the daemon has them. ``spool.json`` holds the spool's id, the dataset, and the attempt to send. The key of a
segment's job consists of id, segment and attempt, and the upload is noted before it starts, so that a lost reply or a process that died
leads to the same job again and no episode arrives twice. If that job was removed meanwhile, the episodes' metadata decide: they hold the
spool's id and the segment, and the dataset does not take a segment's episodes again.
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

from offrl import outfile
from offrl.errors import InvalidInput, StoreLocked
from offrl_store import EpisodeStore
from offrl_store.disk import disk_errors, publish, write_atomic

NOTES = "spool.json"
VERSION = 1


class Spool:
    """A spool, locked for this process until `close`.

    Args:
        folder: created if it does not exist.
        dataset: the dataset of its episodes; None: the one that the spool was made for (to send what is left).

    Raises:
        InvalidInput: the folder is not a spool, or belongs to another dataset.
        StoreLocked: another process records into it or sends it.
    """

    def __init__(self, folder: str | os.PathLike[str], dataset: str | None = None) -> None:
        if not os.fspath(folder) or "\0" in os.fspath(folder):
            raise InvalidInput(f"{os.fspath(folder)!r} is not the path of a folder", hint="give the recorder a folder for its spool")
        self.folder = Path(folder)
        notes = self.folder / NOTES
        if dataset is None and not notes.exists():
            raise InvalidInput(f"{self.folder} is not a spool", hint="pass the folder of a recorder: it holds spool.json")
        with outfile.errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._process, self._highest = os.getpid(), 0
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreLocked(f"another process is using the spool {self.folder}", hint="close its recorder first") from None
            self._notes = self._read(notes, dataset)
            self.dataset: str = self._notes["dataset"]
            self.id: str = self._notes["spool"]
            self._recover()
        except BaseException:
            self.close()
            raise

    def _read(self, notes: Path, dataset: str | None) -> dict[str, Any]:
        if not notes.exists():
            content: dict[str, Any] = {"version": VERSION, "spool": uuid.uuid4().hex, "dataset": dataset, "sent": 0, "sending": None}
            self._write(content)
            return content
        try:
            content = json.loads(notes.read_text())
            whole = (
                isinstance(content, dict) and content["version"] == VERSION and {"spool", "dataset", "sent", "sending"} <= content.keys()
            )
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"{notes} cannot be read: {error}", hint="its episodes are in ready-*, each a store") from None
        if not whole:
            raise InvalidInput(f"{notes} is of another version", hint="send it with the version of offrl that wrote it")
        if dataset is not None and content["dataset"] != dataset:
            raise InvalidInput(
                f"the spool {self.folder} holds episodes of {content['dataset']!r}", hint="give each dataset a spool of its own"
            )
        return content

    def _recover(self) -> None:
        """Take in the segments of a process that died: its open episode ends as truncated."""
        for number, path in self._segments("active"):
            try:
                store = EpisodeStore.open(path)
            except InvalidInput:  # it died while it created the store, which is empty
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
        numbers = ((path.name.removeprefix(f"{kind}-"), path) for path in self.folder.glob(f"{kind}-*"))
        return sorted((int(number), path) for number, path in numbers if number.isdecimal())  # others are somebody else's copies

    def ready(self) -> list[tuple[int, Path]]:
        """The complete segments, oldest first."""
        return self._segments("ready")

    def begin_segment(self) -> tuple[int, Path]:
        """The number and folder of the next segment; the folder does not exist yet. A spool that somebody removed is created again."""
        if not (self.folder / NOTES).exists():
            self._restore()
        numbers = [number for kind in ("active", "ready") for number, _ in self._segments(kind)]
        self._highest = (
            max([self._highest, self._notes["sent"], *numbers]) + 1
        )  # never twice: the daemon identifies a segment by its number
        return self._highest, self.folder / f"active-{self._highest:08d}"

    def _restore(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise StoreLocked(f"another process is using the spool {self.folder}", hint="close its recorder first") from None
            os.close(self._lock)
            self._lock = lock
        self._write({**self._notes, "sending": None})

    def seal(self, number: int) -> None:
        """Mark a segment as complete, so that it is sent; delete it if it holds no episode."""
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
        """Delete the oldest segment whose upload is not complete; returns its number of episodes, 0 if there is no such segment."""
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
        """The current attempt: segment, try, append, the upload once complete, and the upload that was started."""
        return self._notes["sending"]

    def note_sending(self, attempt: dict[str, Any]) -> None:
        """Record an attempt durably, before its job is submitted."""
        self._write({**self._notes, "sending": attempt})

    def note_sent(self, number: int) -> None:
        """Record that the daemon has a segment, and delete it."""
        self._write({**self._notes, "sent": number, "sending": None})
        shutil.rmtree(self.folder / f"ready-{number:08d}", ignore_errors=True)

    def _write(self, notes: dict[str, Any]) -> None:
        with disk_errors(self.folder):
            write_atomic(self.folder / NOTES, json.dumps(notes).encode())
        self._notes = notes

    def close(self) -> None:
        """Release the spool."""
        if self._lock >= 0:
            if os.getpid() == self._process:  # closing alone does not unlock: a forked process has the same lock open
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def size(folder: Path) -> int:
    """Bytes on disk of all files below a folder; files may disappear meanwhile."""
    total = 0
    for inner, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(inner, name)).st_blocks * 512
    return total
