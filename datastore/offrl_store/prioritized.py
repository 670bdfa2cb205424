"""The prioritized sampler: draws transitions in proportion to priorities that training updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from offrl_store._priorities_py import tree_levels
from offrl_store.arguments import Outputs, allocate, flag, number, whole
from offrl_store.errors import InvalidInput
from offrl_store.index import Index, episode_numbers
from offrl_store.kernels import kernels
from offrl_store.reader import StoreReader
from offrl_store.rng import stream_id
from offrl_store.sampler import Batch, TransitionSampler

STREAM = stream_id("prioritized")
STATE = ("priorities", "max_priority", "beta", "step", "seed", "alpha", "eps", "first_row", "end_row")
HIGHEST = 1e20  # largest priority: its powers stay far from overflow


class PrioritizedSampler(TransitionSampler):
    """Draws transitions in proportion to (priority + eps)^alpha, one from each of B equal shares of their sum.

    The batch has ``weight``, (N P)^-beta divided by the largest weight of the batch. ``update(batch.index, priorities)`` sets the
    priorities of a batch; a transition without an update has the highest priority of any so far (1 at first). Batch k depends on the
    updates before it, so a checkpoint keeps ``state_dict()``.

    alpha, beta: at least 0 (0: uniform, no correction); ``beta`` may be set between batches. eps: above 0, so that every transition can be
    drawn. episodes: a set, sampled in the order of the store; without it, ``refresh`` adds the episodes that the store has received since.
    Other arguments, ``out`` (with "weight") and errors: see TransitionSampler.

    Source: Schaul et al. 2016, "Prioritized experience replay".
    """

    def __init__(
        self,
        store: StoreReader,
        *,
        batch_size: int,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        seed: int = 0,
        episodes: Any = None,
        out: Any = None,
        **options: Any,
    ) -> None:
        self._alpha = number(alpha, "alpha", 0.0, 10.0)
        self.beta = beta
        self._eps = number(eps, "eps", 1e-12, 1e12)
        self._episodes = None
        if episodes is not None:
            episodes = self._episodes = np.unique(episode_numbers(store, episodes))
        if options.get("rows") is not None:
            raise InvalidInput("a prioritized sampler has no option 'rows'", hint="pass episodes")
        self._max_priority = 1.0
        super().__init__(store, batch_size=batch_size, seed=seed, episodes=episodes, out=out, stream=STREAM, **options)

    def _build(self, store: StoreReader, index: Index, outputs: Outputs) -> None:
        super()._build(store, index, outputs)
        self._index, self._numbers = index, allocate((self.batch_size,), "i8")
        self._drawn = False  # whether the batch holds the transitions of _numbers
        self._weight = outputs.take("weight", None, (self.batch_size,), "f4")
        self._batch = replace(self._batch, weight=self._weight)
        self._plant(np.full(index.total, self._raised(self._max_priority)))

    def _plant(self, leaves: np.ndarray) -> None:
        """Make the tree of priorities that are already raised to alpha, float64 [N]."""
        self._nodes = np.zeros(sum(tree_levels(len(leaves))))
        self._nodes[: len(leaves)] = leaves
        self._tree = kernels().SumTree(self._nodes, len(leaves))
        self._tree.build()

    def _raised(self, priority: float) -> float:
        return (priority + self._eps) ** self._alpha

    @property
    def alpha(self) -> float:
        return self._alpha

    @property
    def beta(self) -> float:
        """Exponent of the importance weights; usually annealed to 1."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta = number(value, "beta", 0.0, 10.0)

    @property
    def max_priority(self) -> float:
        """The highest priority so far; new transitions get it."""
        return self._max_priority

    @property
    def priorities(self) -> np.ndarray:
        """(priority + eps)^alpha of each transition by its number, float64 [N], read-only; a later update changes the array."""
        leaves = self._nodes[: self.transition_count]
        leaves.setflags(write=False)
        return leaves

    def sample(self) -> Batch:
        """Return the next batch. It is the same object every time, with new values in its arrays."""
        self._tree.sample(self.seed, self._step, STREAM, self._beta, self._numbers, self._weight)
        self._kernel.gather(self._numbers)
        self._check()
        self._step, self._drawn = self._step + 1, True
        return self._batch

    def gather(self, numbers: np.ndarray) -> Batch:
        """Return the batch of these transitions, as TransitionSampler does, with their weights."""
        batch = super().gather(numbers)
        self._numbers[:], self._drawn = numbers, True
        drawn = self._nodes[self._numbers]
        self._weight[:] = (drawn.min() / drawn) ** self._beta
        return batch

    def update(self, index: Any, priorities: Any, *, numbers: bool = False) -> None:
        """Set the priorities of transitions, such as absolute TD errors. The last value of a repeated transition counts.

        Args:
            index: rows, as in ``batch.index``, int64 [n].
            priorities: [n], from 0 to 1e20.
            numbers: ``index`` holds numbers of transitions, as in ``gather``, instead of rows.

        Raises InvalidInput; nothing is changed then.
        """
        index = np.asarray(index)
        try:
            values = np.ascontiguousarray(priorities, np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"priorities are not numbers: {error}") from error
        if index.ndim != 1 or (index.size and index.dtype.kind not in "iu") or values.shape != index.shape:
            raise InvalidInput(
                f"index and priorities have shapes {list(index.shape)} and {list(values.shape)}; expected whole numbers [n] "
                "and priorities [n]"
            )
        if not len(index):
            return
        if not (values.min() >= 0 and values.max() <= HIGHEST):  # NaN fails here as well
            bad = values[~((values >= 0) & (values <= HIGHEST))][0]
            raise InvalidInput(f"priority {bad} is not a number from 0 to {HIGHEST:g}")
        if not flag(numbers, "numbers") and self._drawn and np.array_equal(index, self._batch.index):
            index = self._numbers  # the last batch: its numbers are known
        else:
            index = self._numbered(np.ascontiguousarray(index, np.int64), numbers)
        self._max_priority = max(self._max_priority, self._tree.update(index, values, self._alpha, self._eps))

    def _numbered(self, index: np.ndarray, numbers: bool) -> np.ndarray:
        table, label, original = self._index.table, "transition number" if numbers else "row", index
        if not numbers:
            episode = np.maximum(np.searchsorted(table[:-1, 1], index, side="right") - 1, 0)
            t = index - table[episode, 1]
            index = np.where((t >= 0) & (t < table[episode, 2]), table[episode, 0] + t, -1)
        wrong = (index < 0) | (index >= self.transition_count)
        if wrong.any():
            raise InvalidInput(f"{label} {original[wrong][0]} is not a transition of this sampler", hint="pass batch.index")
        return index

    # --- Growing, saving -----------------------------------------------------------------------------------------------------------

    def refresh(self) -> int:
        """Add the transitions that the store has received and drop those that it has evicted. Returns the number of new transitions.

        Call ``store.refresh()`` first. New transitions get the highest priority so far. The batch becomes a new object in the same arrays
        (stacked pixels: in new arrays). A sampler with ``episodes`` does not change.
        """
        if self._episodes is not None:
            return 0
        before, leaves = self._index, self.priorities
        index = Index(self._store, None, self._next_action)
        dropped = int(np.searchsorted(before.table[:-1, 1], index.table[0, 1]))  # episodes
        leaves = leaves[before.table[dropped, 0] :]
        if index.total == before.total and not dropped:
            return 0
        self._reuse(index, self._batch)
        self.transition_count, self._oldest = index.total, index.oldest
        grown = np.full(index.total, self._raised(self._max_priority))
        grown[: len(leaves)] = leaves
        self._plant(grown)
        return index.total - len(leaves)

    def _reuse(self, index: Index, batch: Batch) -> None:
        """Build the kernel for other episodes, with the arrays of the batch."""
        arrays = {name: value for name in Batch.__dataclass_fields__ if (value := getattr(batch, name)) is not None and len(value)}
        if isinstance(arrays["observation"], np.ndarray) and np.shares_memory(arrays["observation"], arrays["next_observation"]):
            del arrays["observation"], arrays["next_observation"]  # two views of one block
        self._build(self._store, index, Outputs(arrays))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that, with the arguments, determines the next batches: numbers, and a float64 per transition (a copy)."""
        return {
            "priorities": self.priorities.copy(),
            "max_priority": self._max_priority,
            "beta": self._beta,
            "step": self._step,
            "seed": self.seed,
            "alpha": self._alpha,
            "eps": self._eps,
            **self._span(),
        }

    def _span(self) -> dict[str, int]:
        """Return the first row of the first episode, and the row after the last episode."""
        table = self._index.table
        return {"first_row": int(table[0, 1]), "end_row": int(table[-2, 1] + abs(table[-2, 3])) + 1}

    def _surviving(self, state: Mapping[str, Any]) -> np.ndarray:
        """Return the state's priorities of this sampler's transitions, which are its first ones. Raises InvalidInput."""
        leaves, own = np.asarray(state["priorities"], np.float64), self._span()
        first, end = (whole(state[name], name, 0, (1 << 63) - 1) for name in ("first_row", "end_row"))
        evicted = self._episodes is None and self._store.limit and first < own["first_row"]
        if first != own["first_row"] and not evicted:
            raise InvalidInput(
                f"the state has first_row {first}, this sampler {own['first_row']}", hint="make the sampler with the same arguments"
            )
        table = self._index.table
        shared = int(table[np.searchsorted(table[:-1, 1], end), 0])  # transitions of the episodes in the state
        if leaves.ndim != 1 or (len(leaves) <= shared if evicted and shared else not evicted and len(leaves) != shared):
            raise InvalidInput(
                f"the state has {leaves.size} transitions, and the sampler {shared} of them",
                hint="make the sampler with the same arguments",
            )
        return leaves[len(leaves) - shared :]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``.

        Transitions that are new since then get the highest priority; those that a bounded store has evicted are dropped. A sampler with
        ``episodes`` needs all of them. Raises InvalidInput; nothing is changed then.
        """
        missing = [name for name in STATE if name not in state]
        if missing:
            raise InvalidInput(f"the state has no {missing[0]!r}", hint="pass what state_dict() returned")
        for name, own in (("alpha", self._alpha), ("eps", self._eps)):
            if state[name] != own:
                raise InvalidInput(
                    f"the state has {name} {state[name]!r}, this sampler {own!r}", hint="make the sampler with the same arguments"
                )
        leaves = self._surviving(state)
        if len(leaves) and not (leaves.min() > 0 and leaves.max() < np.inf):
            raise InvalidInput("the state holds priorities that are not positive finite numbers")
        beta, step = number(state["beta"], "beta", 0.0, 10.0), whole(state["step"], "step", 0, (1 << 64) - 1)
        seed, highest = whole(state["seed"], "seed", 0, (1 << 64) - 1), number(state["max_priority"], "max_priority", 0.0, HIGHEST)
        self._beta, self._step, self.seed, self._max_priority = beta, step, seed, highest
        grown = np.full(self.transition_count, self._raised(highest))
        grown[: len(leaves)] = leaves
        self._plant(grown)
