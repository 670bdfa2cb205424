"""Learning from one's own play: rollouts of a vectorised environment, their advantages, and the updates that are made from them.

The environment's copies are stepped together and reset on their own (gymnasium's ``AutoresetMode.SAME_STEP``), so no step is lost between
two episodes and an episode goes on over the border of two rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import rng
from offrld.engine import Learner, Space
from offrld.engine.acting import Played

Fields = Mapping[str, np.ndarray]

ORDER = rng.stream_id("rollout order")
REWARD_DISCOUNT, REWARD_LIMIT, REWARD_EPS = 0.99, 10.0, 1e-8   # of normalised rewards
ADVANTAGE_EPS = 1e-5                                           # added to the deviation of advantages


@dataclass(frozen=True)
class Stepped:
    """One step of N environments, as an observer sees it.

    Attributes:
        observation: before the step, by field ``[N, ...]``.
        action: as the environments took it, ``[N, A]`` or ``[N]``.
        reward, terminated, truncated: ``[N]``.
        final: number of an environment whose episode has ended -> the observation after its last step, by field.
        next_observation: what the next step acts on, by field ``[N, ...]``: of an episode that has ended the first of the next one.
    """

    observation: Fields
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: Mapping[int, Fields]
    next_observation: Fields


@dataclass(frozen=True)
class Round:
    """What came of a rollout and its updates: returns and lengths of the episodes that ended in it, and the losses' metrics."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    metrics: dict[str, float]


def advantages(
    reward: np.ndarray, value: np.ndarray, next_value: np.ndarray, ended: np.ndarray, *, gamma: float, lam: float
) -> np.ndarray:  # fmt: skip
    """Generalised advantage estimates (Schulman et al. 2016) of T steps of N environments, all ``[T, N]``.

    ``next_value``: of the state after the step, 0 after a true end, that of the final observation after a truncated one. Nothing passes
    from one episode into the one before it.
    """
    delta = reward + gamma * next_value - value
    found, later = np.empty_like(delta), np.zeros_like(delta[0])
    for t in range(len(delta) - 1, -1, -1):
        later = delta[t] + gamma * lam * np.where(ended[t], 0.0, later)
        found[t] = later
    return found


class Frames:
    """The last ``space.frame_stack`` observations of N environments, along the first axis, oldest first, zeros before an episode."""

    def __init__(self, space: Space) -> None:
        self._frames, self._shapes = space.frame_stack, {name: shape for name, (_, shape) in space.observation.items()}
        self.seen: dict[str, np.ndarray] = {}   # [N, ...] each

    def reset(self, observation: Fields) -> None:
        """Every environment begins an episode."""
        self.seen = {name: self._first(name, each) for name, each in observation.items()}

    def push(self, observation: Fields, ended: np.ndarray) -> None:
        """The observations after a step; where ``ended``, those are the first of an episode."""
        for name, each in observation.items():
            first, later = self._first(name, each), self._moved(name, self.seen[name], each)
            self.seen[name] = np.where(ended.reshape(-1, *[1] * (first.ndim - 1)), first, later)

    def after(self, which: np.ndarray, final: Mapping[int, Fields]) -> dict[str, np.ndarray]:
        """What the environments ``which`` would see after their last step, ``[len(which), ...]`` each; before `push`."""
        return {
            name: self._moved(name, seen[which], np.stack([np.asarray(final[i][name], seen.dtype) for i in which]))
            for name, seen in self.seen.items()
        }

    def _first(self, name: str, each: np.ndarray) -> np.ndarray:
        each = self._at_least_one_axis(each)
        return np.concatenate([np.zeros_like(each)] * (self._frames - 1) + [each], axis=1) if self._frames > 1 else each

    def _moved(self, name: str, seen: np.ndarray, each: np.ndarray) -> np.ndarray:
        each = self._at_least_one_axis(each)
        return np.concatenate([seen[:, each.shape[1] :], each], axis=1) if self._frames > 1 else each

    def _at_least_one_axis(self, each: np.ndarray) -> np.ndarray:
        return each if each.ndim > 1 or self._frames == 1 else each[:, None]


class OnPolicy:
    """Rounds of play and updates.

    Args:
        learner: of an algorithm that learns from rollouts, one seed, made from `Shapes` of this environment.
        envs: a gymnasium vector environment that resets in the same step; it stays the caller's.
        observe: called with each `Stepped`.

    Raises:
        InvalidInput: an algorithm that learns from a dataset, several seeds, another way of resetting, too few steps for a batch.
    """

    def __init__(self, learner: Learner, envs: Any, *, observe: Callable[[Stepped], None] | None = None) -> None:
        from gymnasium.vector import AutoresetMode

        if not learner.algorithm.plays or len(learner.seeds) > 1:
            raise InvalidInput(f"{learner.algorithm.name} with seeds {list(learner.seeds)} does not learn by playing",
                               hint="an algorithm like ppo does, one seed at a time")  # fmt: skip
        if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise InvalidInput("the environments must reset in the step in which an episode ends",
                               hint="gymnasium.make_vec(id, n, vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP})")  # fmt: skip
        self.learner, self.envs, self._observe = learner, envs, observe
        self._seed, self._gamma, self._lam = learner.seeds[0], learner.config.gamma, learner.config.gae_lambda
        self._length, self._rows = learner.config.rollout_steps, learner.config.rollout_steps * envs.num_envs
        if self._rows < learner.config.batch_size:
            raise InvalidInput(f"a rollout of {self._rows} steps is less than one batch of {learner.config.batch_size}",
                               hint="take more environments or rollout_steps, or a smaller batch_size")  # fmt: skip
        self._frames = Frames(learner.space_)
        self._returns, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)   # of the running episodes
        self._normal = _RewardScale(learner, envs.num_envs) if learner.config.normalize_reward else None

    @property
    def updates_per_round(self) -> int:
        """Updates that are made of each rollout; what does not fill a batch at the end of an order is left out."""
        return self.learner.config.epochs * (self._rows // self.learner.config.batch_size)

    @property
    def rounds(self) -> int:
        """Rounds that were played, also before a restart: the learner's updates count them."""
        return self.learner.step // self.updates_per_round

    @property
    def steps(self) -> int:
        """Steps of all environments in these rounds."""
        return self.rounds * self._rows

    def round(self) -> Round:
        """One rollout and its updates."""
        if not self._frames.seen:
            observation, _ = self.envs.reset(seed=self._seed + self.steps)
            self._before = self._by_field(observation)
            self._frames.reset(self._before)
        returns: list[float] = []
        lengths: list[int] = []
        rows = [self._step(self.rounds * self._length + t, returns, lengths) for t in range(self._length)]
        last = self._value(self._frames.seen)
        value, ended = np.stack([row.played.value for row in rows]), np.stack([row.ended for row in rows])  # [T, N]
        next_value = np.concatenate([value[1:], last[None]])
        next_value[ended] = 0.0
        for t, row in enumerate(rows):
            for each, worth in row.cut_values.items():
                next_value[t, each] = worth
        gained = advantages(np.stack([row.reward for row in rows]), value, next_value, ended, gamma=self._gamma, lam=self._lam)
        sums = gained + value
        if self.learner.config.normalize_advantage:
            gained = (gained - gained.mean()) / (gained.std(ddof=1) + ADVANTAGE_EPS)
        seen = {name: np.concatenate([row.seen[name] for row in rows]) for name in rows[0].seen}  # [T * N, ...]
        taken = {
            "action": np.concatenate([row.played.drawn for row in rows]), "value": value.reshape(-1), "advantage": gained.reshape(-1),
            "log_prob": np.concatenate([row.played.log_prob for row in rows]), "returns": sums.reshape(-1),
        }  # fmt: skip
        return Round(tuple(returns), tuple(lengths), self._learn(seen, taken))

    def _step(self, number: int, returns: list[float], lengths: list[int]) -> _Row:
        """One step of all environments; appends what came of the episodes that ended."""
        seen = dict(self._frames.seen)
        played = self.learner.play(seen, step=number)
        observation, reward, terminated, truncated, info = self.envs.step(played.action)
        ended, fields = terminated | truncated, self._by_field(observation)
        final = {int(i): self._by_field(info["final_obs"], int(i)) for i in np.flatnonzero(ended)}
        # The value of a state that an episode was cut at counts; that of one where it truly ended is 0.
        cut = np.flatnonzero(truncated & ~terminated)
        worth = dict(zip(cut.tolist(), self._value(self._frames.after(cut, final)), strict=True)) if len(cut) else {}
        self._returns += reward
        self._lengths += 1
        returns += self._returns[ended].tolist()
        lengths += self._lengths[ended].tolist()
        self._returns[ended], self._lengths[ended] = 0.0, 0
        self._frames.push(fields, ended)
        if self._observe is not None:
            self._observe(Stepped(self._before, played.action, reward, terminated, truncated, final, fields))
        self._before = fields
        return _Row(seen, played, reward if self._normal is None else self._normal(reward, ended), ended, worth)

    def _learn(self, seen: dict[str, np.ndarray], taken: dict[str, np.ndarray]) -> dict[str, float]:
        learner, size = self.learner, self.learner.config.batch_size
        first = self.rounds * learner.config.epochs
        for epoch in range(first, first + learner.config.epochs):
            order = rng.permutation(self._seed, epoch, ORDER, self._rows, self._rows)
            for start in range(0, self._rows - size + 1, size):
                chosen = order[start : start + size]
                parts = {name: value[chosen] for name, value in taken.items()}
                learner.update(learner.rollout({name: value[chosen] for name, value in seen.items()}, **parts))
        return {name: by_seed[self._seed] for name, by_seed in learner.metrics().items()}

    def _value(self, seen: Fields) -> np.ndarray:
        """Values ``[n]`` of what n environments see."""
        return self.learner.play(seen, step=0).value

    def _by_field(self, observation: Any, which: int | None = None) -> dict[str, np.ndarray]:
        """Observations of all environments, or of one, by the names that the learner's space gives the fields."""
        found = observation if which is None else observation[which] if isinstance(observation, np.ndarray) else observation
        if not isinstance(found, Mapping):
            return {"observation": np.array(found)}
        parts = {name: found[name] for name in self.learner.space_.observation}
        whole = which is None or isinstance(observation, np.ndarray)
        return {name: np.array(part if whole else part[which]) for name, part in parts.items()}


@dataclass(frozen=True)
class _Row:
    """One step of N environments as the updates need it."""

    seen: dict[str, np.ndarray]
    played: Played
    reward: np.ndarray
    ended: np.ndarray
    cut_values: dict[int, float]   # environment whose episode was cut here -> the value of its last state


class _RewardScale:
    """Divides rewards by the running deviation of the discounted return (Engstrom et al. 2020) and clips them; its sums are in the
    learner's memory, so a checkpoint has them."""

    def __init__(self, learner: Learner, environments: int) -> None:
        self._memory = learner.state.memory
        self._running = np.zeros(environments)

    def __call__(self, reward: np.ndarray, ended: np.ndarray) -> np.ndarray:
        self._running = REWARD_DISCOUNT * self._running + reward
        count, mean, square = (self._memory[f"return_{name}"] for name in ("count", "mean", "square"))
        before, rows = float(count[0]), len(reward)
        apart = self._running.mean() - float(mean[0])
        # The moments of two samples joined (Chan et al. 1979); `square` is the sum of squared distances from the mean.
        square += self._running.var() * rows + apart**2 * before * rows / (before + rows)
        mean += apart * rows / (before + rows)
        count += rows
        self._running[ended] = 0.0
        deviation = np.sqrt(float(square[0]) / float(count[0]) + REWARD_EPS)
        return np.clip(reward / deviation, -REWARD_LIMIT, REWARD_LIMIT)
