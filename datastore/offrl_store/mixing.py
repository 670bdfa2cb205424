"""Batches from several stores at once, each with its share, and the choice of episodes by return, length and end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from offrl_store import format as layout
from offrl_store.arguments import Outputs, flag, number, whole
from offrl_store.errors import InvalidInput
from offrl_store.kernels import kernels
from offrl_store.reader import StoreReader
from offrl_store.rng import stream_id
from offrl_store.sampler import Sampler, TransitionSampler
from offrl_store.windows import WindowSampler

STREAM = stream_id("mix")
WORD = (1 << 64) - 1
SCALE = 1 << 53  # shares are drawn as whole numbers below this


def mix(stores: Iterable[tuple[StoreReader, float]]) -> Mix:
    """Several stores as one source of batches: ``mix([(expert, 0.25), (replay, 0.75)]).transitions(256, seed=0)``.

    Args:
        stores: pairs of a store and its weight, a positive number; weights count relative to their sum. A store may come twice.

    Raises InvalidInput (no pair, a bad weight, stores of different fields).
    """
    return Mix(stores)


class Mix:
    """Use ``mix``."""

    def __init__(self, stores: Iterable[tuple[StoreReader, float]]) -> None:
        try:
            pairs = [(store, weight) for store, weight in stores]
        except (TypeError, ValueError) as error:
            raise InvalidInput("stores must be pairs of a store and its weight", hint="mix([(store, 0.5), (other, 0.5)])") from error
        if not pairs:
            raise InvalidInput("there is no store to mix")
        self.stores = tuple(store for store, _ in pairs)
        weights = [number(weight, "weight", 0.0, 1e300) for _, weight in pairs]
        for place, (store, weight) in enumerate(zip(self.stores, weights, strict=True)):
            if weight == 0.0:
                raise InvalidInput(f"the weight of store {place} is 0", hint="leave it out")
            if not hasattr(store, "schema"):
                raise InvalidInput(f"item {place} of stores is {type(store).__name__}, not a store")
            if not store.schema.same_fields(self.stores[0].schema):
                raise InvalidInput(f"store {place} has other fields than store 0", hint="all stores of a mix have the same columns")
        largest = max(weights)
        weights = [weight / largest for weight in weights]
        self.shares = tuple(weight / sum(weights) for weight in weights)

    def transitions(
        self,
        batch_size: int,
        seed: int,
        *,
        exact: bool = True,
        replacement: bool = True,
        episodes: Sequence[Any] | None = None,
        out: Any = None,
        **options: Any,
    ) -> MixSampler:
        """A sampler of transitions; options as in ``EpisodeStore.transitions``. See MixSampler."""
        return MixSampler(self, TransitionSampler, "transitions", batch_size, seed, exact, replacement, episodes, out, options)

    def windows(
        self,
        batch_size: int,
        length: int,
        seed: int,
        *,
        exact: bool = True,
        replacement: bool = True,
        episodes: Sequence[Any] | None = None,
        out: Any = None,
        **options: Any,
    ) -> MixSampler:
        """A sampler of windows; options as in ``EpisodeStore.windows``. See MixSampler."""
        return MixSampler(
            self, WindowSampler, "windows", batch_size, seed, exact, replacement, episodes, out, {"length": length, **options}
        )


class MixSampler:
    """Batches whose samples come from several stores, those of the first store first; ``batch.dataset`` says which, int64 [B].

    exact: each batch holds the same number of samples of each store, its share of the batch rounded so that the sum fits (largest
    remainders); or else each sample draws its store by the shares, and the numbers vary. replacement=False (with exact=True): each store
    gives its transitions in epochs of its own, every one once before any comes again; where one of its epochs ends within a batch the next
    begins there. Batch k is a pure function of (the snapshots, seed, k, the arguments). episodes: one list of episode numbers, or None,
    per store. out: as in the samplers, and "dataset". Iterating gives batches without end.
    """

    def __init__(
        self,
        mixed: Mix,
        kind: type[TransitionSampler] | type[WindowSampler],
        name: str,
        batch_size: int,
        seed: int,
        exact: bool,
        replacement: bool,
        episodes: Sequence[Any] | None,
        out: Any,
        options: dict[str, Any],
    ) -> None:
        self.batch_size, self.shares = whole(batch_size, "batch_size", 1, 1 << 31), mixed.shares
        self.exact, self.seed, self._step = flag(exact, "exact"), whole(seed, "seed", 0, (1 << 64) - 1), 0
        self.replacement = flag(replacement, "replacement")
        if not self.replacement and not self.exact:
            raise InvalidInput("replacement=False needs exact=True", hint="each store then gives the same number of samples to every batch")
        unknown = {"drop_last", "rows", "stream"} & set(options)
        if unknown:
            raise InvalidInput(f"a mix has no option {sorted(unknown)[0]!r}", hint="its batches are all full, and of whole episodes")
        if episodes is not None and (not isinstance(episodes, Sequence) or len(episodes) != len(mixed.stores)):
            raise InvalidInput(f"episodes must be a list of {len(mixed.stores)}: the episode numbers, or None, of each store")
        self._counts = self._rounded() if self.exact else [0] * len(mixed.stores)
        given = dict(out) if isinstance(out, dict) else out
        own = Outputs({"dataset": given.pop("dataset")} if isinstance(given, dict) and "dataset" in given else None)
        self._dataset = own.take("dataset", None, (self.batch_size,), "i8")
        self._samplers: list[TransitionSampler | WindowSampler] = []
        for place, store in enumerate(mixed.stores):  # all write into the arrays of the first
            try:
                sampler = kind(
                    store,
                    batch_size=batch_size,
                    seed=seed,
                    episodes=None if episodes is None else episodes[place],
                    out=given,
                    stream=stream_id(f"{name}/{place}"),
                    **options,
                )
            except TypeError as error:
                raise InvalidInput(f"the {name} of a mix take other options: {error}") from error
            if not self._samplers:
                batch = sampler._batch
                given = {
                    name: value for name in type(batch).__dataclass_fields__ if (value := getattr(batch, name)) is not None and len(value)
                }
            self._samplers.append(sampler)
        self.transition_counts = tuple(sampler.transition_count for sampler in self._samplers)
        self._batch = replace(self._samplers[0]._batch, dataset=self._dataset)
        self._draws, self._below = np.zeros(self.batch_size, np.int64), np.zeros(self.batch_size, bool)
        self._orders = [stream_id(f"{name}/{place}/epochs") for place in range(len(mixed.stores))]
        self._borders = [round(sum(self.shares[: place + 1]) * SCALE) for place in range(len(self.shares) - 1)]
        self._name_datasets()

    def _rounded(self) -> list[int]:
        due = [share * self.batch_size for share in self.shares]
        counts = [math.floor(value + 1e-9) for value in due]
        order = sorted(range(len(due)), key=lambda place: (counts[place] - due[place], place))
        for place in order[: self.batch_size - sum(counts)]:
            counts[place] += 1
        if 0 in counts:
            place = counts.index(0)
            raise InvalidInput(
                f"store {place} would get {due[place]:.3g} of the {self.batch_size} samples of a batch, that is none",
                hint="take a larger batch_size, or exact=False",
            )
        return counts

    def _name_datasets(self) -> None:
        start = 0
        for place, count in enumerate(self._counts):
            self._dataset[start : start + count] = place
            start += count

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each store in the last batch (in all batches, if exact)."""
        return tuple(self._counts)

    @property
    def step(self) -> int:
        """Number of the batch that ``sample`` gives next."""
        return self._step

    def seek(self, step: int) -> None:
        """Go to batch ``step``: the next ``sample`` gives it."""
        self._step = whole(step, "step", 0, (1 << 64) - 1)

    def sample(self) -> Any:
        """The next batch. It is the same object every time, with new values in its arrays."""
        if not self.exact:
            kernels().draw(self.seed, self._step, STREAM, SCALE, self._draws)
            before = 0
            for place, border in enumerate([*self._borders, SCALE]):
                np.less(self._draws, border, out=self._below)
                upto = int(np.count_nonzero(self._below))
                self._counts[place], before = upto - before, upto
            self._name_datasets()
        start = 0
        for sampler, order, count in zip(self._samplers, self._orders, self._counts, strict=True):
            if self.replacement:
                sampler._kernel.sample(self.seed, self._step, sampler._stream, start, count)
            else:
                self._go_on(sampler, order, start, count)
            sampler._check()
            start += count
        self._step += 1
        return self._batch

    def _go_on(self, sampler: Sampler, order: int, start: int, count: int) -> None:
        """The next ``count`` transitions of a store's epochs, which follow from the number of the batch alone."""
        epoch, place = divmod(self._step * count, sampler.transition_count)
        while count:
            some = min(count, sampler.transition_count - place)
            sampler._kernel.sample_order(self.seed, epoch & WORD, order, place, start, some)
            start, count, epoch, place = start + some, count - some, epoch + 1, 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.sample()


def select(
    store: StoreReader,
    *,
    min_return: float | None = None,
    max_return: float | None = None,
    min_steps: int | None = None,
    max_steps: int | None = None,
    terminated: bool | None = None,
    top_fraction: float | None = None,
) -> np.ndarray:
    """Numbers of the episodes that meet every condition given, ascending, int64: to be used as ``episodes=``.

    min_return, max_return: of the undiscounted return, inclusive. min_steps, max_steps: of T, inclusive. terminated: True or False for
    one end only. top_fraction: of the episodes left by the others, the best ones by return, at least one, above 0 up to 1 (of equal
    returns the first). Raises InvalidInput.
    """
    records = store.episode_table
    keep = np.ones(len(records), bool)
    for name, limit, column, sign in (("min_return", min_return, "return", 1), ("max_return", max_return, "return", -1)):
        if limit is not None:
            keep &= sign * records[column] >= sign * number(limit, name, -math.inf, math.inf)
    for name, steps, sign in (("min_steps", min_steps, 1), ("max_steps", max_steps, -1)):
        if steps is not None:
            keep &= sign * records["steps"] >= sign * whole(steps, name, 0, 1 << 62)
    if terminated is not None:
        keep &= ((records["flags"] & layout.TERMINATED) != 0) == flag(terminated, "terminated")
    numbers = np.flatnonzero(keep)
    if top_fraction is not None:
        fraction = number(top_fraction, "top_fraction", 0.0, 1.0)
        if fraction == 0.0:
            raise InvalidInput("top_fraction 0 leaves no episode", hint="it is above 0 up to 1")
        count = math.ceil(fraction * len(numbers) - 1e-9)
        numbers = np.sort(numbers[np.argsort(-records["return"][numbers], kind="stable")[:count]])
    return numbers
