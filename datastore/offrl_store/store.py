"""EpisodeStore: the face of a store. `StoreReader` reads it; this adds creation, the writer, samplers, selections and statistics."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from offrl_store import eviction
from offrl_store import format as layout
from offrl_store.disk import disk_errors, publish, sync_folder, write_synced
from offrl_store.errors import InvalidInput, StoreCorrupt, StoreExists
from offrl_store.mixing import select
from offrl_store.prioritized import PrioritizedSampler
from offrl_store.reader import Snapshot, StoreReader
from offrl_store.sampler import TransitionSampler
from offrl_store.schema import Episode, Schema
from offrl_store.stats import stats as compute_stats
from offrl_store.transitions import TransitionList, transition_rows
from offrl_store.windows import WindowSampler
from offrl_store.writer import Writer


class EpisodeStore(StoreReader):
    """Whole episodes on disk, read through memory maps. The cost of opening grows with the episodes, not with the rows.

    Any number of readers may have a store open while one writer appends. A reader sees the episodes of its last ``refresh``.
    """

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], schema: Schema, *, limit_transitions: int | None = None, limit_bytes: int | None = None
    ) -> EpisodeStore:
        """Make an empty store, which appears whole or not at all. Raises StoreExists unless ``path`` is missing or an empty folder.

        A store with a limit is bounded, first in, first out: a commit that exceeds the limit evicts the oldest episodes (never the newest
        one) and frees their space.
        """
        limit = eviction.checked_limit(limit_transitions, limit_bytes)
        path = Path(os.path.abspath(path))
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise StoreExists(f"{path} already exists", hint="choose another path, or open the store that is there")
        temporary = path.parent / f".{path.name}.creating-{secrets.token_hex(4)}"
        with disk_errors(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                (temporary / layout.COLUMN_FOLDER).mkdir(parents=True)
                for column in schema.columns:
                    layout.column_path(temporary, column.name).touch()
                for name, content in ((layout.LOG_FILE, layout.dump_header()), (layout.SCHEMA_FILE, layout.dump_schema(schema, limit))):
                    write_synced(temporary / name, content, new=True)
                sync_folder(temporary / layout.COLUMN_FOLDER)
                sync_folder(temporary)
                try:
                    publish(temporary, path)
                except FileExistsError as error:
                    raise StoreExists(f"{path} already exists", hint="another process created it just now") from error
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return cls(path, schema, None, limit)

    @classmethod
    def open(cls, path: str | os.PathLike[str], snapshot: Snapshot | str | None = None) -> EpisodeStore:
        """Open a store for reading; ``writer()`` returns its writer. With a snapshot, the store always shows exactly those episodes.

        Raises StoreNotFound, StoreCorrupt (damaged or cut files, a snapshot of another store), SnapshotEvicted.
        """
        path = Path(os.path.abspath(path))
        pinned = Snapshot.parse(snapshot) if isinstance(snapshot, str) else snapshot
        try:
            with disk_errors(path, "read"):
                schema, limit = layout.load_schema(path)
                return cls(path, schema, pinned, limit)
        except IsADirectoryError as error:
            raise StoreCorrupt(f"{error.filename or path / layout.LOG_FILE} is a folder", hint="restore the file from a copy") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodeStore.open, (str(self.path), self._pinned)

    # --- What is inside -------------------------------------------------------------------------------------------------------

    @property
    def episodes(self) -> EpisodeList:
        """All episodes as a sequence that makes each on demand, as views of the maps."""
        return EpisodeList(self, np.arange(len(self)))

    def stats(self) -> dict[str, Any]:
        """Return mean, std, min and max of returns, lengths and every field, cached in the folder. See ``offrl_store.stats``."""
        return compute_stats(self)

    def remove(self) -> None:
        """Delete the store's folder. Raises StoreLocked while a writer has it."""
        with contextlib.closing(self.writer()):
            # From here on the folder is not a store, even if the process dies.
            os.rename(self.path / layout.SCHEMA_FILE, self.path / ".removed")
        shutil.rmtree(self.path)

    def __repr__(self) -> str:
        limit = "".join(f" limit_{name}={value}" for name, value in self.limit.items())
        returns = f" returns={self.returns.min():.6g}..{self.returns.max():.6g}" if len(self) else ""
        fields = ", ".join(f"{c.name}: {c.field.dtype.name}{list(c.field.shape)}" for c in self.schema.columns)
        counts = f"episodes={len(self)} transitions={self.transition_count} bytes={self.nbytes}{returns}{limit}"
        return f"<EpisodeStore {self.path} {counts} ({fields})>"

    # --- Writing and sampling ---------------------------------------------------------------------------------------------------

    def writer(self, keep: Sequence[Snapshot | str] = (), commit_s: float | None = None) -> Writer[EpisodeStore]:
        """Return the writer, for a ``with`` block; this store sees its commits. Raises StoreLocked while there is another writer.

        keep: snapshots whose episodes a bounded store must not evict, even if it grows beyond its limit. commit_s: the writer also commits
        when an episode ends and the last commit was at least this many seconds ago.
        """
        if self._pinned is not None:
            raise InvalidInput(f"the store was opened at snapshot {self._pinned} and cannot be written", hint="open it without a snapshot")
        return Writer(self, [Snapshot.parse(str(snapshot)) for snapshot in keep], commit_s)

    def transitions(
        self,
        batch_size: int,
        seed: int,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        next_action: Any = False,
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        replacement: bool = True,
        drop_last: bool = True,
        returns: bool = False,
        failure_return: float | None = None,
        step_reward: float = 0.0,
        reward: Any = None,
        rows: Any = None,
    ) -> TransitionSampler:
        """Make a sampler of transitions, uniform with repetitions or in epochs (``replacement=False``). See TransitionSampler.

        It draws from the present episodes, or only from the numbers ``episodes`` or the transitions at ``rows``.
        """
        return TransitionSampler(
            self,
            batch_size=batch_size,
            seed=seed,
            n_steps=n_steps,
            gamma=gamma,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            next_action=next_action,
            episodes=episodes,
            extra=extra,
            out=out,
            replacement=replacement,
            drop_last=drop_last,
            returns=returns,
            failure_return=failure_return,
            step_reward=step_reward,
            reward=reward,
            rows=rows,
        )

    def windows(
        self,
        batch_size: int,
        length: int,
        seed: int,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        replacement: bool = True,
        drop_last: bool = True,
        reward: Any = None,
        rows: Any = None,
    ) -> WindowSampler:
        """Make a sampler of ``length`` consecutive steps, left-padded, with mask, time steps and returns-to-go. See WindowSampler."""
        return WindowSampler(
            self,
            batch_size=batch_size,
            length=length,
            seed=seed,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            episodes=episodes,
            extra=extra,
            out=out,
            replacement=replacement,
            drop_last=drop_last,
            reward=reward,
            rows=rows,
        )

    def prioritized(
        self,
        batch_size: int,
        alpha: float = 0.6,
        beta: float = 0.4,
        seed: int = 0,
        n_steps: int = 1,
        gamma: float = 0.99,
        frame_stack: int = 1,
        stack_pad: str = "zero",
        next_action: bool = False,
        episodes: Any = None,
        extra: Sequence[str] = (),
        out: Any = None,
        *,
        eps: float = 1e-6,
        returns: bool = False,
    ) -> PrioritizedSampler:
        """Make a sampler of transitions in proportion to priority^alpha, with importance weights. See PrioritizedSampler."""
        return PrioritizedSampler(
            self,
            batch_size=batch_size,
            alpha=alpha,
            beta=beta,
            eps=eps,
            seed=seed,
            n_steps=n_steps,
            gamma=gamma,
            frame_stack=frame_stack,
            stack_pad=stack_pad,
            next_action=next_action,
            episodes=episodes,
            extra=extra,
            out=out,
            returns=returns,
        )

    def select(
        self,
        *,
        min_return: float | None = None,
        max_return: float | None = None,
        min_steps: int | None = None,
        max_steps: int | None = None,
        terminated: bool | None = None,
        top_fraction: float | None = None,
    ) -> np.ndarray:
        """Return the numbers of the episodes that meet every condition, for ``episodes=``. See ``offrl_store.mixing.select``."""
        return select(
            self,
            min_return=min_return,
            max_return=max_return,
            min_steps=min_steps,
            max_steps=max_steps,
            terminated=terminated,
            top_fraction=top_fraction,
        )


class EpisodeList(Sequence[Episode]):
    """Episodes of a store as a sequence: an index returns an Episode, a slice an EpisodeList. Samplers accept it as ``episodes``."""

    def __init__(self, store: EpisodeStore, numbers: np.ndarray) -> None:
        self.store, self.numbers = store, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> EpisodeList: ...

    def __getitem__(self, index: int | slice) -> Episode | EpisodeList:
        if isinstance(index, slice):
            return EpisodeList(self.store, self.numbers[index])
        return self.store.read_episode(int(self.numbers[index]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the numbers of the episodes."""
        return np.array(self.numbers, dtype) if copy is not False else self.numbers

    def take(self, indices: Any) -> EpisodeList:
        """Return the list of the episodes at these indices. Raises InvalidInput."""
        indices = np.asarray(indices)
        if indices.ndim != 1 or (indices.size and (indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= len(self))):
            raise InvalidInput(f"indices must be whole numbers from 0 to {len(self) - 1}")
        return EpisodeList(self.store, self.numbers[indices.astype(np.int64)])

    @property
    def transitions(self) -> TransitionList:
        """The transitions of these episodes that can be sampled, as a lazy sequence in the order of this list."""
        return TransitionList(self.store, transition_rows(self.store, self.numbers))

    def __repr__(self) -> str:
        return f"<{len(self)} episodes of {self.store.path}>"
