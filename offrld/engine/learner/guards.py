"""Guards: warnings about classic mistakes before the first update, and a check of metrics that become NaN or diverge.

Metrics diverge if a mean value exceeds ten times what the rewards allow, max |r| / (1 - gamma), or a loss exceeds a million times its first
value. With gamma = 1, the longest episode's length replaces 1 / (1 - gamma); each action dimension adds one unit of reward, for entropy.
This gives only a warning, because sound runs exceed the limits now and then; beyond a thousand times (values) or 1e12 times (losses) the
seed stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrl_store.errors import OffrlError
from offrld.engine.definition.algorithm import Algorithm, ValueConfig
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space, is_image
from offrld.engine.learner.data import spread_rows
from offrld.preprocess.scalers import Scaler, is_wide

VALUES = ("q_mean", "v_mean", "target_mean")  # metrics in units of values
WARN, STOP = 10.0, 1000.0  # multiples of what rewards allow
LOSS_WARN, LOSS_STOP = 1e6, 1e12  # multiples of a loss's first mean (at least 1)
HUGE_RETURN = 1e4
WIDE_OBSERVATION = 1e3
ENDLESS = 1000  # a single episode of this many steps or more suggests that ends were lost
ROWS = 100_000  # rows sampled for ranges
LOST, COARSE = 16, 1024  # float32 steps within a standard deviation: below LOST an error, below COARSE a warning
HELP = "try a smaller learning rate, gradient clipping, or a reward or observation scaler"


class Diverged(OffrlError):
    """A loss or a value became NaN or infinite, or diverged, in all seeds of the run or in the requested one."""

    code = "diverged"


@dataclass(frozen=True)
class Trouble:
    """A problem of one seed. ``good``: the last step at which its metrics were sound."""

    metric: str
    seed: int
    step: int
    value: float
    good: int
    why: str

    def __str__(self) -> str:
        return f"{self.metric} of seed {self.seed} {self.why} by step {self.step}"


class Guard:
    """Watch the metrics of a run's seeds. The guard's state is part of the checkpoint.

    Attributes:
        stopped: seed -> the problem that stopped it.
        warned: (metric, seed) of past warnings.
    """

    def __init__(self, seeds: tuple[int, ...], limit: float | None) -> None:
        """``limit``: the largest value that the rewards allow; None: values are only checked for NaN."""
        self._seeds, self._limit = seeds, limit
        self._first: dict[str, dict[int, float]] = {}
        self._good = dict.fromkeys(seeds, 0)
        self.stopped: dict[int, Trouble] = {}
        self.warned: set[tuple[str, int]] = set()

    def check(self, step: int, means: dict[str, dict[int, float]]) -> tuple[list[Trouble], list[Trouble]]:
        """Return new warnings, and the problems that stop seeds now, from the means of the metrics up to ``step``."""
        warnings, stops = [], []
        for seed in self._seeds:
            if seed in self.stopped:
                continue
            looks = [look for name, values in means.items() if seed in values and (look := self._look(name, seed, step, values[seed]))]
            if worst := next((trouble for trouble, severe in looks if severe), None):
                self.stopped[seed] = worst
                stops.append(worst)
                continue
            for trouble, _ in looks:
                if (trouble.metric, seed) not in self.warned:
                    self.warned.add((trouble.metric, seed))
                    warnings.append(trouble)
            if not looks:
                self._good[seed] = step
        return warnings, stops

    def watch(self, step: int, means: dict[str, dict[int, float]], log: Callable[[str], None]) -> None:
        """Run `check` and log one line per warning and stop; raise `Diverged` once no sound seed is left."""
        warnings, stops = self.check(step, means)
        for trouble in warnings:
            log(f"warning: {trouble}; {HELP}")
        for trouble in stops:
            log(f"{trouble}: this seed is no longer used")
        if stops and not self.running:
            worst = stops[0]
            raise Diverged(str(worst), hint=f"it was sound at step {worst.good}; {HELP}")

    def stop(self, seed: int, step: int, metric: str, why: str) -> Trouble:
        """Stop a seed for a reason other than a metric."""
        self.stopped[seed] = Trouble(metric, seed, step, math.nan, self._good[seed], why)
        return self.stopped[seed]

    @property
    def running(self) -> list[int]:
        """The seeds that have not stopped."""
        return [seed for seed in self._seeds if seed not in self.stopped]

    @property
    def good(self) -> int | None:
        """The last step at which all seeds were sound; None while they still are."""
        seeds = {seed for _, seed in self.warned} | self.stopped.keys()
        return min((self._good[seed] for seed in seeds), default=None)

    def _look(self, name: str, seed: int, step: int, value: float) -> tuple[Trouble, bool] | None:
        def trouble(why: str, severe: bool) -> tuple[Trouble, bool]:
            return Trouble(name, seed, step, value, self._good[seed], why), severe

        if not math.isfinite(value):
            return trouble(f"became {value}", True)
        if name in VALUES and self._limit is not None and abs(value) > WARN * self._limit:
            return trouble(
                f"ran away to {value:.3g}, {abs(value) / self._limit:.0f} times what the rewards allow", abs(value) > STOP * self._limit
            )
        if name.endswith("loss"):
            first = max(abs(self._first.setdefault(name, {}).setdefault(seed, value)), 1.0)
            if abs(value) > LOSS_WARN * first:
                return trouble(f"ran away to {value:.3g}, {abs(value) / first:.0e} times its start", abs(value) > LOSS_STOP * first)
        return None

    def as_json(self) -> dict[str, Any]:
        """Return the whole state, for a checkpoint."""
        return {
            "first": {name: {str(seed): value for seed, value in values.items()} for name, values in self._first.items()},
            "good": {str(seed): step for seed, step in self._good.items()},
            "stopped": [[t.metric, t.seed, t.step, repr(t.value), t.good, t.why] for t in self.stopped.values()],
            "warned": sorted([name, seed] for name, seed in self.warned),
        }

    def load(self, values: dict[str, Any]) -> None:
        """Restore the state that `as_json` returned."""
        self._first = {name: {int(seed): value for seed, value in first.items()} for name, first in values["first"].items()}
        self._good = {int(seed): step for seed, step in values["good"].items()}
        troubles = [Trouble(metric, seed, step, float(value), good, why) for metric, seed, step, value, good, why in values["stopped"]]
        self.stopped = {trouble.seed: trouble for trouble in troubles}
        self.warned = {(name, seed) for name, seed in values["warned"]}


def value_limit(config: Any, store: EpisodeStore | None, space: Space, scalers: Scalers) -> float | None:
    """Return the largest value that the rewards allow; None for algorithms without values, or without data."""
    if store is None or not isinstance(config, ValueConfig):
        return None
    reward = _largest(_scaled(np.asarray(store.column("reward")), scalers))
    entropy = 1.0 if space.discrete else float(space.action_size)
    longest = float(store.episode_table["steps"].max(initial=1))
    horizon = 1.0 / (1.0 - config.gamma) if config.gamma < 1 else longest
    return (reward + entropy) * horizon


# --- Before the first update ---
def mistakes(algorithm: Algorithm, config: Any, store: EpisodeStore, space: Space, scalers: Scalers, training: np.ndarray) -> list[str]:
    """Return one line, with a remedy, for each classic mistake in data and settings."""
    checks = (_rewards, _ends, _observations, _actions)
    return [text for check in checks for text in check(algorithm, config, store, space, scalers, training)]


def check_precision(store: EpisodeStore, config: Any, space: Space, scalers: Scalers, training: np.ndarray) -> list[str]:
    """Return warnings about numbers that lose digits in float32, in which networks compute.

    Raises:
        InvalidInput: the variation of the data is lost altogether, as with unscaled seconds since 1970, which are 128 apart in float32.
    """
    columns = {
        ("observation." + name if isinstance(store.schema.observation, dict) else "observation"): scalers.observation[name]
        for name in space.observation
    }
    options = dict.fromkeys(columns, "observation_scaler=standard")
    if hasattr(config, "reward_scaler"):
        columns["reward"], options["reward"] = scalers.reward, "reward_scaler=standard"
    warnings = []
    for name, scaler in columns.items():
        dtype = store.column(name).dtype
        if not is_wide(dtype):
            continue
        rows = _sample(store, training, name)
        if not len(rows):
            continue
        digits = np.float32 if scaler is None else np.float64
        rows = rows.reshape(len(rows), -1)
        low, high = rows.min(axis=0), rows.max(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 are infinitely far apart
            spread = np.nan_to_num(_above(rows, low).std(axis=0), nan=np.finfo(np.float64).max)
            step = _apart(np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64))).astype(digits))
        worst = int(np.argmax(np.where(spread > 0, step / np.where(spread > 0, spread, 1.0), 0.0)))
        if not spread[worst] > 0 or spread[worst] >= step[worst] * COARSE:
            continue
        place = f"{name}[{worst}]" if rows.shape[1] > 1 else name
        gap = f"holds such numbers {step[worst]:.3g} apart" if np.isfinite(step[worst]) else "does not hold such numbers"
        text = f"{place} lies between {low[worst]} and {high[worst]} with a deviation of {spread[worst]:.3g}; {np.dtype(digits)} {gap}"
        helps = f"--set {options[name]} takes the mean away first" if scaler is None else "subtract the offset before the import"
        if spread[worst] < step[worst] * LOST:
            raise InvalidInput(f"{text}: what varies is lost", hint=helps)
        warnings.append(f"{text}: digits are lost; {helps}")
    return warnings


def _above(rows: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return ``rows - low`` as float64; integers lose no digits, because the difference is exact modulo 2^64."""
    if rows.dtype.kind == "f":
        return rows - low
    whole = np.uint64 if rows.dtype.kind == "u" else np.int64
    return (rows.astype(whole).astype(np.uint64) - low.astype(whole).astype(np.uint64)).astype(np.float64)


def _apart(values: np.ndarray) -> np.ndarray:
    """Return the distance from each value to the next one of its dtype; infinity for infinite values."""
    return np.where(np.isfinite(values), np.spacing(values), np.inf).astype(np.float64)


Lines = Iterator[str]
Find = Callable[[Algorithm, Any, EpisodeStore, Space, Scalers, np.ndarray], Lines]


def _rewards(algorithm: Algorithm, config: Any, store: EpisodeStore, space: Space, scalers: Scalers, training: np.ndarray) -> Lines:
    if not isinstance(config, ValueConfig) and algorithm.batch_kind != "windows":
        return
    reward = np.asarray(store.column("reward"))
    table = store.episode_table[training]
    spans = [(int(first), int(first + steps)) for first, steps in zip(table["first_row"], table["steps"], strict=True)]
    pieces = [reward[first:end] for first, end in spans if end > first]
    if pieces and min(float(piece.min()) for piece in pieces) == max(float(piece.max()) for piece in pieces):
        yield f"all rewards are {float(pieces[0][0]):g}: only the lengths of episodes separate good actions from bad ones"
        return
    largest = max((abs(float(_scaled(piece, scalers).sum(dtype=np.float64))) for piece in pieces), default=0.0)
    if largest > HUGE_RETURN:
        yield f"returns reach {largest:.3g}: values of that size are learned badly; --set reward_scaler=return or standard helps"


def _ends(algorithm: Algorithm, config: Any, store: EpisodeStore, space: Space, scalers: Scalers, training: np.ndarray) -> Lines:
    table = store.episode_table
    if len(table) == 1 and int(table["steps"][0]) >= ENDLESS and not store.episodes[0].terminated:
        steps = int(table["steps"][0])
        yield f"all {steps} steps are one episode without an end: were terminals and timeouts lost on the way into the dataset?"


def _observations(algorithm: Algorithm, config: Any, store: EpisodeStore, space: Space, scalers: Scalers, training: np.ndarray) -> Lines:
    for name, (_, shape) in space.observation.items():
        if is_image(shape):
            continue
        rows = _sample(store, training, f"observation.{name}" if isinstance(store.schema.observation, dict) else "observation")
        scaler = scalers.observation[name]
        if scaler is not None:
            frames = space.frame_stack
            rows = np.tile(rows if rows.ndim > 1 else rows[:, None], (1, frames, *(1,) * (rows.ndim - 2)))
            rows = _applied(scaler, rows.astype(np.float64)).numpy()
        largest = _largest(rows)
        if largest > WIDE_OBSERVATION:
            has = "although they are scaled" if scaler is not None else "--set observation_scaler=standard helps"
            yield f"observations {name!r} reach {largest:.3g}: networks learn badly from numbers of that size; {has}"


def _actions(algorithm: Algorithm, config: Any, store: EpisodeStore, space: Space, scalers: Scalers, training: np.ndarray) -> Lines:
    if space.discrete:
        return
    raw = _sample(store, training, "action")
    if space.whole:
        yield "actions are vectors of whole numbers: they are learned as numbers, and the policy rounds to the nearest ones"
    elif len(raw) and raw.shape[1] > 1 and np.isin(raw, (0, 1)).all() and (raw.sum(axis=1) == 1).all():
        yield (
            f"every action is one 1 among {raw.shape[1]} numbers, like a discrete choice, but a policy would output values in between; "
            f"import the number of the 1 as a discrete action, 0 to {raw.shape[1] - 1}"
        )
    elif len(raw) and np.array_equal(raw, np.rint(raw)) and not np.isin(raw, np.stack(space.bounds)).all():
        yield "all actions are whole numbers stored as floats: if the environment takes discrete choices, import them as a discrete action"
    rows = raw.astype(np.float64)
    scaled = torch.from_numpy(rows) if scalers.action is None else _applied(scalers.action, rows)
    outside = float((scaled.abs() > 1.0 + 1e-4).any(-1).double().mean()) if len(scaled) else 0.0
    if outside > 0:
        helps = "give the bounds of the environment (--eval-env), or --set action_scaler=min_max with minimum and maximum"
        yield f"{outside:.1%} of the actions are outside of [-1, 1], in which policies act, so no policy can take them; {helps}"


# --- Shared ---
def _sample(store: EpisodeStore, training: np.ndarray, column: str) -> np.ndarray:
    """Return some rows of a column, spread over the training episodes' transitions."""
    return np.asarray(store.column(column)[spread_rows(store, training, ROWS)])


def _scaled(rewards: np.ndarray, scalers: Scalers) -> np.ndarray:
    if scalers.reward is None:
        return rewards
    return _applied(scalers.reward, np.array(rewards)).numpy()


def _applied(scaler: Scaler, values: np.ndarray) -> torch.Tensor:
    """Return the scaled values on the CPU; they are computed in the scaler's dtype and on its device."""
    like = next(iter(scaler.tensors().values()), torch.zeros((), dtype=torch.float64))
    return scaler(torch.from_numpy(values).to(like)).cpu()


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))
