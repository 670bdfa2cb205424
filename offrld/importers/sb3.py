"""Import the replay buffer of a loaded Stable-Baselines3 model, and put a dataset into such a buffer.

Files of Stable-Baselines3 are pickles and are never read here: load the model or the buffer with Stable-Baselines3 and pass the object. The
rows of each environment are read in the order of writing, also after the ring has wrapped around. Ends by the time limit (``timeouts``) are
truncations, not terminals. Models keep actions scaled to [-1, 1]; the import converts them to the units of the environment.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from offrl_store import EpisodeStore, Field
from offrl_store.errors import EmptyStore, InvalidInput
from offrld.importers.columns import Column
from offrld.importers.exporting import named_observations
from offrld.importers.flat import FlatArrays, flat_source
from offrld.importers.source import BadEpisodes, Source
from offrld.importers.spaces import ActionSpace, Choices, box, choices

NEEDS = "a ReplayBuffer, DictReplayBuffer or HerReplayBuffer of Stable-Baselines3, for example model.replay_buffer"

Actions = Literal["scaled", "environment"]


class _Rows:
    """Rows of ``[size, environments, ...]`` as the data of a column: environment by environment, the oldest row first."""

    def __init__(self, array: np.ndarray, first: int, count: int, following: bool = False, shape: tuple[int, ...] | None = None) -> None:
        self._array, self._first, self._count, self._shift = array, first, count, int(following)
        self._row = tuple(array.shape[2:]) if shape is None else shape
        self.shape, self.dtype = (count * array.shape[1], *self._row), array.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        environment, step = np.divmod(np.arange(rows.start, rows.stop), self._count)
        block = self._array[(self._first + step + self._shift) % len(self._array), environment]
        return block.reshape(len(block), *self._row)


class _Unscaled:
    """Actions in [-1, 1], converted to the units of their space, as the data of a column."""

    def __init__(self, data: Any, low: np.ndarray, high: np.ndarray) -> None:
        self._data, self._low, self._high = data, low, high
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return (self._low + 0.5 * (self._data[rows] + 1.0) * (self._high - self._low)).astype(self.dtype)


def from_sb3(buffer: Any, *, env_id: str | None = None, actions: Actions = "scaled", skip_bad: bool = False) -> Source:
    """Make a source for `import_into` of a loaded replay buffer of Stable-Baselines3.

    Args:
        buffer: ``model.replay_buffer``, or any other replay buffer object.
        env_id: the gymnasium environment, kept in the metadata.
        actions: units of continuous actions in the buffer: ``scaled`` to [-1, 1], as models store them, or ``environment``.
        skip_bad: leave out episodes that cannot be used.

    Raises:
        InvalidInput: the object is not such a buffer, or its spaces are not supported.
        EmptyStore: the buffer is empty.
    """
    needed = ("observations", "actions", "rewards", "dones", "timeouts", "pos", "full", "action_space", "n_envs")
    missing = [name for name in needed if not hasattr(buffer, name)]
    if missing:
        raise InvalidInput(f"a {type(buffer).__name__} has no {missing[0]!r}", hint=f"pass {NEEDS}")
    if actions not in ("scaled", "environment"):
        raise InvalidInput(f"actions is {actions!r}", hint="pass 'scaled' or 'environment'")
    size = len(buffer.rewards)
    shared = bool(getattr(buffer, "optimize_memory_usage", False))  # next observations are in the following row
    first, count = (buffer.pos, size) if buffer.full else (0, buffer.pos)
    if shared and buffer.full:  # the newest next observation has replaced the oldest observation
        first, count = (buffer.pos + 1) % size, size - 1
    if count < 1:
        raise EmptyStore("the buffer holds no steps", hint="collect first")
    name = type(buffer).__name__
    rows = lambda array, **more: _Rows(np.asarray(array), first, count, **more)  # noqa: E731
    total = count * buffer.n_envs
    done, timeout = (Column(name, key, rows(getattr(buffer, key))).read_flags(0, total) for key in ("dones", "timeouts"))
    cut = timeout.copy()
    cut[count - 1 :: count] = True  # the newest step of each environment
    observations, following = buffer.observations, buffer.observations if shared else buffer.next_observations
    fields = named_observations(observations)
    shapes = {key: _shape(buffer.observation_space, key, array) for key, array in fields.items()}
    columns = {key: Column(name, f"observations{key and '/'}{key}", rows(array, shape=shapes[key])) for key, array in fields.items()}
    nexts = {
        key: Column(name, f"next_observations{key and '/'}{key}", rows(array, following=shared, shape=shapes[key]))
        for key, array in named_observations(following).items()
    }
    space, data = _actions(buffer, rows(buffer.actions), actions == "scaled")
    messages = []
    if shared and done.any():
        messages.append("a buffer with optimize_memory_usage keeps no final observations: those of ended episodes are missing")
    arrays = FlatArrays(
        columns if isinstance(observations, dict) else columns[""],
        Column(name, "actions", data),
        Column(name, "rewards", rows(buffer.rewards)),
        Column(name, "dones", done & ~timeout),
        Column(name, "timeouts", cut),
        nexts if isinstance(observations, dict) else nexts[""],
        Column(name, "dones", ~done) if shared else None,
    )
    return flat_source(
        arrays,
        BadEpisodes(skip_bad),
        format="sb3",
        env_id=env_id,
        space=space,
        attributes={},
        messages=messages,
        discrete=isinstance(space, Choices) if space is not None else None,
    )


def _shape(space: Any, key: str, array: np.ndarray) -> tuple[int, ...]:
    """Return the shape of an observation. The buffer keeps a Discrete one as a row of one number; its shape is ()."""
    inner = space[key] if key else space
    return () if hasattr(inner, "n") and not getattr(inner, "shape", ()) else tuple(array.shape[2:])


def _actions(buffer: Any, data: _Rows, scaled: bool) -> tuple[ActionSpace | None, Any]:
    """Return the action space, and the actions in its units. Raises `InvalidInput`."""
    space = buffer.action_space
    if hasattr(space, "nvec") or type(space).__name__ == "MultiBinary":
        raise InvalidInput(f"the actions are a {type(space).__name__} space, which is not read", hint="Box and Discrete actions are")
    if hasattr(space, "n"):
        return choices(int(space.n), int(getattr(space, "start", 0)), "declared", type(buffer).__name__), data
    bounds = box(space.low, space.high, "declared")
    return bounds, _Unscaled(data, bounds.low, bounds.high) if scaled and bounds is not None else data


def to_sb3(store: EpisodeStore, buffer: Any, *, actions: Actions = "scaled") -> int:
    """Add the transitions of a store to a replay buffer of Stable-Baselines3 for one environment. Returns their number.

    Truncations are marked as time-outs, so that the buffer bootstraps there (``handle_timeout_termination``). A truncated episode without
    its final observation loses its last step.

    Raises:
        InvalidInput: the buffer is for several environments or its dtype is too narrow, or the store has several action fields.
    """
    if getattr(buffer, "n_envs", None) != 1 or not hasattr(buffer, "add"):
        raise InvalidInput(
            f"a {type(buffer).__name__} for {getattr(buffer, 'n_envs', 'no')} environments cannot be filled", hint="make it with n_envs=1"
        )
    action = store.schema.action
    if not isinstance(action, Field):
        raise InvalidInput(f"the dataset has several action fields ({', '.join(action)})", hint="a buffer holds one")
    bounds = None if action.discrete or actions == "environment" else box(buffer.action_space.low, buffer.action_space.high, "declared")
    added = 0
    held = {key: array.dtype for key, array in named_observations(buffer.observations).items()}
    for number, episode in enumerate(store.episodes):
        for key, rows in named_observations(episode.observation).items():
            _check_kept(rows, held.get(key, rows.dtype), f"episode {number}: {key or 'observation'}")
        scaled = episode.action
        if bounds is not None:
            scaled = (2.0 * (scaled - bounds.low) / (bounds.high - bounds.low) - 1.0).astype(scaled.dtype)
        for t in range(episode.steps - (episode.final_missing and not episode.terminated)):
            last = t == episode.steps - 1
            behind = t if last and episode.final_missing else t + 1  # after a terminal no learner uses it
            now, then = ({key: rows[at][None] for key, rows in named_observations(episode.observation).items()} for at in (t, behind))
            single = isinstance(store.schema.observation, Field)
            buffer.add(
                now[""] if single else now,
                then[""] if single else then,
                scaled[t : t + 1],
                episode.reward[t : t + 1],
                np.array([last]),
                [{"TimeLimit.truncated": last and not episode.terminated}],
            )
            added += 1
    return added


def _check_kept(rows: np.ndarray, dtype: np.dtype, what: str) -> None:
    """Raise `InvalidInput` for the first value that a buffer of this dtype would change."""
    if np.can_cast(rows.dtype, dtype, "safe"):
        return
    with np.errstate(over="ignore", invalid="ignore"):
        back = rows.astype(dtype).astype(rows.dtype)
    wrong = np.argwhere(back != rows)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise InvalidInput(
            f"{what}[{', '.join(map(str, at))}] is {rows[at]}, which a buffer of {dtype} would keep as {back[at]}",
            hint=f"make the buffer with an observation space of {rows.dtype}",
        )
