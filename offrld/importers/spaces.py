"""The action space of a source: declared in the file, known from its environment, or inferred from the actions.

The file's own declaration comes first, then the ``action_space`` of the environment that it names, then the range of the data.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from offrl import environments
from offrl.spaces import schema_action
from offrl_store import Field
from offrl_store.errors import InvalidInput
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column

#: Actions may lie outside their bounds by this share of the bound's size: float32 rounding of a float64 bound.
TOLERANCE = 1e-6

#: float64 holds every whole number up to this one.
EXACT = 2**53

#: gymnasium's names for spaces of several choices at once.
CHOICES = ("MultiDiscrete", "MultiBinary")

#: A policy has one output per choice, so a larger number must be an error.
MAX_CHOICES = 1 << 20


@dataclass(frozen=True)
class _Known:
    """What both kinds of action space state about their source.

    Attributes:
        origin: ``env:ID`` or ``declared``.
        owner: the name that messages use for the declaring file or environment.
    """

    origin: str
    owner: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        owner = self.owner or (self.origin.removeprefix("env:") if self.origin.startswith("env:") else "the file")
        object.__setattr__(self, "owner", owner)


@dataclass(frozen=True)
class Choices(_Known):
    """``n`` discrete actions, numbered from 0."""

    n: int


@dataclass(frozen=True)
class Box(_Known):
    """Continuous actions, or vectors of whole numbers.

    Attributes:
        low, high: float64 ``[A]``, or ``[]`` for every dimension. An infinite value means no bound.
        kind: one of `CHOICES` if a row is a vector of choices, which lie between whole bounds; else "".
    """

    low: np.ndarray
    high: np.ndarray
    kind: str = ""


ActionSpace = Choices | Box


@dataclass(frozen=True)
class Environment:
    """gymnasium's description of an environment: its action space (None without usable bounds) and its time limit in steps."""

    space: ActionSpace | None
    limit: int | None


def box(low: Any, high: Any, origin: str, file: str = "the file", kind: str = "") -> Box | None:
    """Make a box; None if no bound is finite. Raises `InvalidInput` for NaN, for a low bound above the high one and for unequal sizes."""
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if low.ndim and high.ndim:
        low, high = low.reshape(-1), high.reshape(-1)
        if low.size != high.size:
            raise InvalidInput(
                f"{file}: action_low has {low.size} values and action_high {high.size}", hint="pass one for each dimension of the actions"
            )
    low, high = np.broadcast_arrays(low, high)
    for name, bound in (("low", low), ("high", high)):
        if np.isnan(bound).any():
            raise InvalidInput(f"{file}: action_{name}{_place(np.isnan(bound))} is nan", hint="pass a number; inf means no bound")
    if (wrong := (low > high) | (low == np.inf) | (high == -np.inf)).any():
        at = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InvalidInput(
            f"{file}: action_low{_place(wrong)} is {low[at]:g} and action_high {high[at]:g}",
            hint="give a low bound below the high one",
        )
    if kind and (wrong := ~np.isfinite(low) | ~np.isfinite(high) | (low != np.floor(low)) | (high != np.floor(high))).any():
        at = np.unravel_index(int(wrong.argmax()), wrong.shape)
        raise InvalidInput(
            f"{file}: choices{_place(wrong)} lie between {low[at]:g} and {high[at]:g}", hint=f"{kind} actions have whole bounds"
        )
    if not low.size or not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    return Box(origin, low, high, kind)


def kind_of(metadata: Any) -> str:
    """Return the kind of choices (`CHOICES`) in a dataset's metadata; "" for other actions."""
    space = metadata.get("action_space") if isinstance(metadata, dict) else None
    kind = space.get("kind") if isinstance(space, dict) else None
    return kind if kind in CHOICES else ""


def _place(wrong: np.ndarray) -> str:
    """Return ``[i]`` of the first true value; "" for a single value."""
    return f"[{int(wrong.argmax())}]" if wrong.ndim else ""


def choices(n: Any, start: Any, origin: str, file: str) -> Choices:
    """Make a space of ``n`` discrete actions. ``start`` must be 0, because the policy's output is the number itself.

    Raises `InvalidInput` for another start, and unless ``n`` is a whole number from 1 to `MAX_CHOICES`.
    """
    number: Any = n if isinstance(n, Real) else math.nan
    if number != number // 1 or not 1 <= number <= MAX_CHOICES:
        raise InvalidInput(
            f"{file}: the number of actions is {n!r:.60}",
            hint=f"a policy has one output per action: a whole number from 1 to {MAX_CHOICES}",
        )
    if start != 0:
        raise InvalidInput(
            f"{file}: the actions are numbered from {start}", hint="number them from 0, and add the offset in the environment"
        )
    return Choices(origin, int(number))


def probe_environment(env_id: str | None, file: str, messages: list[str]) -> Environment:
    """Ask gymnasium about the environment that a file names. An unknown environment adds a line to ``messages`` and is not an error."""
    unknown = Environment(None, None)
    if not env_id:
        return unknown
    if ":" in env_id:  # gymnasium would import the module before the colon; a data file must not decide that
        messages.append(f"the bounds of environment {env_id!r} are not used: a data file cannot make the import load a module")
        return unknown
    try:
        import gymnasium

        environments.register()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = gymnasium.make(env_id, disable_env_checker=True)
            try:
                space, limit = env.action_space, env.spec.max_episode_steps if env.spec else None
            finally:
                env.close()
    except Exception as error:  # anything may fail in an environment's constructor; bounds then come from the data
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        messages.append(f"environment {env_id!r} is not available here ({line}); the actions' range is taken from the data")
        return unknown
    origin = f"env:{env_id}"
    if isinstance(space, gymnasium.spaces.Discrete):
        return Environment(choices(int(space.n), int(space.start), origin, file), limit)
    if isinstance(space, (gymnasium.spaces.MultiDiscrete, gymnasium.spaces.MultiBinary)):
        field = schema_action(space)
        return Environment(box(field.low, field.high, origin, kind=type(space).__name__), limit)
    bounds = box(space.low, space.high, origin, file) if isinstance(space, gymnasium.spaces.Box) else None
    if bounds is None:
        messages.append(f"environment {env_id!r} gives no finite bounds ({space}); the actions' range is taken from the data")
    return Environment(bounds, limit)


def extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and largest value of each column of ``[K, A]``, both ``[A]``.

    A narrow array is first folded into rows of some hundred values: NumPy reduces rows of six at a sixth of the speed.
    """
    width = values.shape[1]
    fold = max(1, 512 // width)
    whole = len(values) // fold * fold
    if fold > 1 and whole and values.flags.c_contiguous:
        wide = values[:whole].reshape(-1, fold * width)
        parts = [extreme.reshape(fold, width) for extreme in (wide.min(0), wide.max(0))]
        rest = values[whole:]
        return np.concatenate([parts[0], rest]).min(0), np.concatenate([parts[1], rest]).max(0)
    return values.min(0), values.max(0)


class ActionScan:
    """One pass over all actions in blocks: decides their kind, checks them against a known space, and finds their range.

    Args:
        column: the first column of actions; its dtype and shape decide the kind if nothing else does.
        space: the known space, or None.
        discrete: the kind that the file itself declares, or None.
    """

    def __init__(self, column: Column, space: ActionSpace | None = None, discrete: bool | None = None) -> None:
        if discrete is None and space is not None:
            discrete = isinstance(space, Choices)
        self.discrete = column.dtype.kind in "iub" if discrete is None else discrete
        self._space, self._dtype = space, column.dtype
        if self.discrete and column.shape not in ((), (1,)):
            raise InvalidInput(
                f"{column.file}: {column.key!r} holds {column.dtype} rows of shape {column.shape}: "
                "several discrete actions per step are not supported",
                hint="number the combinations in one column, or store continuous actions as floats",
            )
        if not self.discrete and (len(column.shape) > 1 or 0 in column.shape):
            raise InvalidInput(
                f"{column.file}: {column.key!r} has rows of shape {column.shape}", hint="a continuous action is a vector: [N, A]"
            )
        self._size = 1 if not column.shape else column.shape[0]
        if space is not None and isinstance(space, Choices) != self.discrete:
            kinds = {True: "discrete", False: "continuous"}
            raise InvalidInput(
                f"{column.file}: the actions are {kinds[self.discrete]}, those of {space.owner} are {kinds[not self.discrete]}",
                hint="correct the environment's name or the actions",
            )
        if isinstance(space, Box) and space.low.ndim and space.low.size != self._size:
            raise InvalidInput(
                f"{column.file}: {column.key!r} has {self._size} dimensions, the actions of {space.owner} have {space.low.size}",
                hint="correct the environment's name or the actions",
            )
        self._choices = space if isinstance(space, Choices) else None
        self._kind = space.kind if isinstance(space, Box) else ""  # of `CHOICES`: whole numbers, whatever their dtype
        self._box: Box | None = None
        if isinstance(space, Box):
            self._box = replace(space, low=np.broadcast_to(space.low, self._size), high=np.broadcast_to(space.high, self._size))
        self._integer = self._dtype.kind in "iu" and self._box is not None and self._holds(self._box)
        self._low, self._high = np.full(self._size, np.inf), np.full(self._size, -np.inf)
        self._whole = True
        self._noise, self._overshoot = 0, 0.0  # number of values beyond a bound by less than the tolerance, and the largest excess

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata that a dataset keeps beside its schema: a vector of choices is stored as a vector of whole numbers."""
        return {"action_space": {"kind": self._box.kind}} if self._box is not None and self._box.kind else {}

    def _holds(self, box: Box) -> bool:
        """Return whether the bounds of a box are values of the integer dtype."""
        info, bounds = np.iinfo(self._dtype), np.concatenate([box.low, box.high])
        return bool(((bounds == np.floor(bounds)) & (bounds >= info.min) & (bounds <= info.max) & (np.abs(bounds) <= EXACT)).all())

    def convert(self, block: np.ndarray) -> np.ndarray:
        """Convert a block to its stored form: int64 ``[K]`` if discrete, else numbers ``[K, A]``, with rounding noise clipped to the
        bounds.
        """
        if self.discrete:
            return block.reshape(len(block)).astype(np.int64, copy=False)
        block = block.reshape(len(block), self._size).astype(self.dtype, copy=False)
        if self._noise and self._box is not None:
            block = np.clip(block, self._box.low.astype(block.dtype), self._box.high.astype(block.dtype))
        return block

    @property
    def dtype(self) -> str:
        """The stored dtype.

        Discrete actions become int64, and vectors of choices whole numbers. Floats keep their dtype, and so do continuous integers between
        whole bounds. Other continuous integers become the smaller float that holds all of them.
        """
        if self._kind:
            return self._dtype.name if self._integer else "int64"
        if self.discrete or self._dtype.kind == "f":
            return "int64" if self.discrete else self._dtype.name
        if self._integer:
            return self._dtype.name
        return "float32" if max(-self._low.min(), self._high.max()) <= 2**24 else "float64"

    def add(self, column: Column, start: int, block: np.ndarray) -> None:
        """Check a block whose first row is row ``start`` of ``column``. Raises `BadRow` that names the first wrong value."""
        column.check_finite(block, start)
        if not len(block):
            return
        values = block.reshape(len(block), -1)
        if self.discrete:
            self._add_discrete(column, start, values[:, 0])
            low, high = values.min(0), values.max(0)
        else:
            if self._kind and (fraction := values != np.floor(values)).any():
                row, dim = (int(i) for i in np.argwhere(fraction)[0])
                raise BadRow(
                    f"{column.file}: {column.where(start + row, (dim,) if column.shape else ())} is {values[row, dim]:.9g}, "
                    f"but {self._kind} actions are whole numbers",
                    column.number(start + row),
                    hint="correct the actions, or their kind",
                )
            low, high = extremes(values)
            if values.dtype.kind in "iu" and (wrong := (values > EXACT) | (values < -EXACT)).any():
                row, dim = (int(i) for i in np.argwhere(wrong)[0])
                index = (dim,) if column.shape else ()
                raise BadRow(
                    f"{column.file}: {column.where(start + row, index)} is {values[row, dim]}, which no float holds exactly",
                    column.number(start + row),
                    hint="scale the actions, or store them as floats",
                )
            if self._box is not None:
                self._check_bounds(self._box, column, start, values, low, high)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._whole = self._whole and (values.dtype.kind != "f" or bool((values == np.floor(values)).all()))

    def _check_bounds(self, box: Box, column: Column, start: int, values: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
        """Check continuous actions against a box. Their extremes ``least`` and ``most`` ``[A]`` nearly always suffice."""
        low, high = box.low, box.high
        margin = TOLERANCE * np.maximum(*(np.where(np.isfinite(bound), np.abs(bound), 0) for bound in (low, high)))
        if self._integer or self._kind:
            margin = np.zeros_like(low)  # whole numbers are not rounded
        if (least < low - margin).any() or (most > high + margin).any():
            row, dim = (int(i) for i in np.argwhere((values < low - margin) | (values > high + margin))[0])
            index = (dim,) if column.shape else ()
            raise BadRow(
                f"{column.file}: {column.where(start + row, index)} is {float(values[row, dim]):.9g}, outside "
                f"[{low[dim]:g}, {high[dim]:g}] of {box.owner}",
                column.number(start + row),
                hint=f"clip the actions, or state their bounds: --option action_low=... --option action_high=...{self._remove()}",
            )
        if self._integer or self._kind:
            return
        low, high = low.astype(self.dtype), high.astype(self.dtype)
        if (least.astype(self.dtype) < low).any() or (most.astype(self.dtype) > high).any():
            over = np.maximum(values.astype(self.dtype) - high, low - values)
            self._noise += int((over > 0).sum())
            self._overshoot = max(self._overshoot, float(over.max()))

    def _add_discrete(self, column: Column, start: int, values: np.ndarray) -> None:
        if values.dtype.kind == "f":
            wrong = np.flatnonzero(values != np.floor(values))
            if len(wrong):
                raise BadRow(
                    f"{column.file}: {column.where(start + int(wrong[0]))} is {values[wrong[0]]:.9g}, but the actions are discrete",
                    column.number(start + int(wrong[0])),
                    hint=f"discrete actions are whole numbers from 0; mark the file as continuous if they are not{self._remove()}",
                )
        n = self._choices.n if self._choices is not None else MAX_CHOICES
        wrong = np.flatnonzero((values < 0) | (values >= n))
        if len(wrong):
            of = (
                f"the {n} actions (0 to {n - 1}) of {self._choices.owner}"
                if self._choices is not None
                else f"the range of discrete actions (0 to {n - 1})"
            )
            raise BadRow(
                f"{column.file}: {column.where(start + int(wrong[0]))} is {values[wrong[0]]:.9g}, outside {of}",
                column.number(start + int(wrong[0])),
                hint=f"number the actions from 0, or state their number: --option action_n=...{self._remove()}",
            )

    def _remove(self) -> str:
        return (
            ", or remove 'env_id' so that the range is taken from the data"
            if self._space is not None and self._space.origin != "declared"
            else ""
        )

    def field(self, messages: list[str]) -> tuple[Field, str]:
        """Return the action field with its bounds, and their origin: ``env:ID``, ``declared`` or ``inferred``."""
        origin = self._space.origin if self._space is not None else "inferred"
        if self.discrete:
            n = self._choices.n if self._choices is not None else int(self._high[0]) + 1
            if self._choices is None:
                messages.append(f"{n} discrete actions, counted in the data: the file declares no number")
            return Field("int64", (), low=0, high=n - 1), origin
        if self._noise:
            messages.append(
                f"{self._noise} actions were beyond their bounds by at most {self._overshoot:.1e} (rounding) and were set to the bound"
            )
        if self._box is not None:
            if self._dtype.kind in "iub" and not self._integer and not self._kind:
                messages.append(f"the actions are {self._dtype.name}, their bounds are not: the actions keep their values, as {self.dtype}")
            low, high = (self._filled(self._box, name, messages) for name in ("low", "high"))
            return Field(self.dtype, (self._size,), low=low.astype(self.dtype), high=high.astype(self.dtype)), origin
        if self._whole and self._dtype.kind == "f":
            messages.append(
                "all actions are whole numbers in a float array and count as continuous; store them as integers if they are choices"
            )
        messages.append("the file declares no action bounds: the range of the data is used")
        return Field(self.dtype, (self._size,), low=self._low.copy(), high=self._high.copy()), origin

    def _filled(self, box: Box, name: str, messages: list[str]) -> np.ndarray:
        """Return a declared bound; the extreme of the data replaces infinite values."""
        bound, data = (box.low, self._low) if name == "low" else (box.high, self._high)
        infinite = ~np.isfinite(bound)
        if infinite.any():
            places = ", ".join(str(place) for place in np.flatnonzero(infinite)[:8]) + (", ..." if infinite.sum() > 8 else "")
            messages.append(
                f"the {name} bound of the actions is infinite in {box.owner} for dimension {places}: "
                f"the {'smallest' if name == 'low' else 'largest'} value of the data is used there"
            )
        return np.where(infinite, data, bound)
