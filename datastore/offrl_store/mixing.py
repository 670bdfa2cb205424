"""Batches from several stores with fixed shares, and the selection of episodes by return, length and end."""

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
    """Combine several stores into one source of batches: ``mix([(expert, 0.25), (replay, 0.75)]).transitions(256, seed=0)``.

    Args:
        stores: pairs of a store and its weight, a positive number; weights count relative to their sum. A store may be repeated.

    Raises InvalidInput (no pair, an invalid weight, stores with different fields).
    """
    return Mix(stores)


class Mix:
    """Several stores with their shares. Made by ``mix``."""

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
        """Make a sampler of transitions; options as in ``EpisodeStore.transitions``. See MixSampler."""
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
        """Make a sampler of windows; options as in ``EpisodeStore.windows``. See MixSampler."""
        return MixSampler(
            self, WindowSampler, "windows", batch_size, seed, exact, replacement, episodes, out, {"length": length, **options}
        )


class MixSampler:
    """Batches from several stores, the samples of the first store first; ``batch.dataset`` int64 [B] is the index of each one's store.

    exact: each batch holds the same number of samples of each store: its share of the batch, rounded so that the sum fits (largest
    remainders). Otherwise each sample draws its store by the shares, and the numbers vary. replacement=False (with exact=True): each store
    has its own epochs, in which every transition comes once; the next epoch may start within a batch. Batch k is a pure function of (the
    snapshots, seed, k, the arguments). episodes: for each store a list of episode numbers, or None. out: as in the samplers, and "dataset".
    Iterating yields batches without end.
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
        arrays = dict(out) if isinstance(out, dict) else out
        own = Outputs({"dataset": arrays.pop("dataset")} if isinstance(arrays, dict) and "dataset" in arrays else None)
        self._dataset = own.take("dataset", None, (self.batch_size,), "i8")
        self._samplers: list[TransitionSampler | WindowSampler] = []
        for place, store in enumerate(mixed.stores):  # all samplers write into the arrays of the first one
            try:
                sampler = kind(
                    store,
                    batch_size=batch_size,
                    seed=seed,
                    episodes=None if episodes is None else episodes[place],
                    out=arrays,
                    stream=stream_id(f"{name}/{place}"),
                    **options,
                )
            except TypeError as error:
                raise InvalidInput(f"the {name} of a mix take other options: {error}") from error
            if not self._samplers:
                batch = sampler._batch
                arrays = {
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
        samples = [share * self.batch_size for share in self.shares]
        counts = [math.floor(value + 1e-9) for value in samples]
        order = sorted(range(len(samples)), key=lambda place: (counts[place] - samples[place], place))
        for place in order[: self.batch_size - sum(counts)]:
            counts[place] += 1
        if 0 in counts:
            place = counts.index(0)
            raise InvalidInput(
                f"store {place} would get {samples[place]:.3g} of the {self.batch_size} samples of a batch, which rounds to 0",
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
        """Number of samples of each store in the last batch (in every batch, if exact)."""
        return tuple(self._counts)

    @property
    def step(self) -> int:
        """Number of the batch that ``sample`` returns next."""
        return self._step

    def seek(self, step: int) -> None:
        """Go to batch ``step``: the next ``sample`` returns it."""
        self._step = whole(step, "step", 0, (1 << 64) - 1)

    def sample(self) -> Any:
        """Return the next batch. It is the same object every time, with new values in its arrays."""
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
        """Gather the next ``count`` transitions of a store's epochs; they follow from the number of the batch alone."""
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
    """Return the numbers of the episodes that meet every condition, ascending, int64, for use as ``episodes=``.

    min_return, max_return: bounds of the undiscounted return, inclusive. min_steps, max_steps: bounds of T, inclusive. terminated: True or
    False selects one kind of end. top_fraction: above 0 and at most 1, keeps this share of the remaining episodes, the best by return (of
    equal returns the first), at least one. Raises InvalidInput.
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
            raise InvalidInput("top_fraction 0 leaves no episode", hint="pass a number above 0 and at most 1")
        count = math.ceil(fraction * len(numbers) - 1e-9)
        numbers = np.sort(numbers[np.argsort(-records["return"][numbers], kind="stable")[:count]])
    return numbers
