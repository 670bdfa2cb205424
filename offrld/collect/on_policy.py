"""On-policy training: rollouts in one environment or several, their advantages, and the updates made from them.

A `Collector` plays, so episodes continue from one rollout to the next, and a store can keep the steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from offrl.errors import InvalidInput
from offrl_store import EpisodeStore, rng
from offrld.collect.batches import CollectedBatch
from offrld.collect.collector import Collector
from offrld.collect.trained_behaviours import LearnerBehaviour
from offrld.engine import Learner
from offrld.engine.learner.actor import Played

ORDER = rng.stream_id("rollout order")
REWARD_DISCOUNT, REWARD_LIMIT, REWARD_EPS = 0.99, 10.0, 1e-8  # of normalised rewards
ADVANTAGE_EPS = 1e-5  # added to the deviation of advantages


@dataclass(frozen=True)
class Round:
    """The result of a rollout and its updates: returns and lengths of the episodes that ended in it, and the losses' metrics."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    metrics: dict[str, float]


def advantages(reward: np.ndarray, value: np.ndarray, next_value: np.ndarray, ended: np.ndarray, *, gamma: float, lam: float) -> np.ndarray:
    """Generalised advantage estimates (Schulman et al. 2016) of T steps of N environments, all ``[N, T]``.

    ``next_value``: of the state after the step: 0 after a termination, that of the final observation after a truncation. No advantage
    reaches across the border of two episodes.
    """
    delta = reward + gamma * next_value - value
    estimates, later = np.empty_like(delta), np.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        later = delta[:, t] + gamma * lam * np.where(ended[:, t], 0.0, later)
        estimates[:, t] = later
    return estimates


class OnPolicy:
    """Rounds of play and updates. Close it, or use it as a context.

        learner = offrld.build("ppo", gymnasium.make("CartPole-v1"))
        with OnPolicy(learner, "CartPole-v1", envs=8) as trained:
            while trained.step < 100_000:
                print(trained.step, trained.round().returns)

    Args:
        learner: of an algorithm that learns from rollouts, one seed, made from the environment (or its `Shapes`).
        check: called before every step and every update. If it raises, the round stops there: its updates so far stand, and the next round
            starts with a new rollout.
        env, options: see `Collector`: ``envs``, ``vectorization``, ``into`` (a store that keeps the steps), ``step_timeout_s``, ...

    Raises:
        InvalidInput: an algorithm that learns from a dataset, several seeds, too few steps for a batch, an environment that does not fit.
    """

    def __init__(self, learner: Learner, env: Any, *, check: Callable[[], None] = lambda: None, **options: Any) -> None:
        if not learner.algorithm.plays or len(learner.seeds) > 1:
            raise InvalidInput(
                f"{learner.algorithm.name} with seeds {list(learner.seeds)} does not learn by playing",
                hint="an algorithm like ppo does, one seed at a time",
            )
        self.learner, self._seed, self._check = learner, learner.seeds[0], check
        self._playing = _Playing(learner, check)
        self.collector = Collector(env, self._playing, seed=self._seed, **options)
        try:
            self._count, self._length = self.collector.envs.count, learner.config.rollout_steps
            self._rows = self._count * self._length
            if self.collector.envs.mode == "next_step":
                raise InvalidInput(
                    "these environments spend a step on their reset, and a rollout has no place for it",
                    hint="pass an id, or AutoresetMode.SAME_STEP or DISABLED",
                )
            if self._rows < learner.config.batch_size:
                raise InvalidInput(
                    f"a rollout of {self._rows} steps is less than one batch of {learner.config.batch_size}",
                    hint="take more environments or rollout_steps, or a smaller batch_size",
                )
        except BaseException:
            self.close()
            raise
        if self.step:  # after a restart the episodes differ from those at the start
            self.collector.set_seed(int(rng.integers(self._seed, self.step, ORDER, 2**31, 1)[0]))
        self._returns, self._lengths = np.zeros(self._count), np.zeros(self._count, np.int64)  # of the episodes under way
        self._ended: tuple[list[float], list[int]] = ([], [])  # returns and lengths of ended episodes, until they are read
        self.spent = {"environment": 0.0, "update": 0.0}
        self._scale = _RewardScale(learner, self._count) if learner.config.normalize_reward else None

    @property
    def updates_per_round(self) -> int:
        """Updates per rollout; in each epoch, rows that do not fill a batch are left out."""
        return self.learner.config.epochs * (self._rows // self.learner.config.batch_size)

    @property
    def rounds(self) -> int:
        """Rounds played so far, those before a restart included: the learner's updates count them."""
        return self.learner.step // self.updates_per_round

    @property
    def round_steps(self) -> int:
        """Steps of all environments in one round: the unit of `advance`."""
        return self._rows

    @property
    def step(self) -> int:
        """Steps of all environments in the rounds played so far."""
        return self.rounds * self._rows

    @property
    def store(self) -> EpisodeStore | None:
        """The store that keeps the steps; None without one."""
        return self.collector.store

    def round(self) -> Round:
        """One rollout and its updates."""
        self._round()
        (returns, lengths), self._ended = self._ended, ([], [])
        metrics = {name: by_seed[self._seed] for name, by_seed in self.learner.metrics().items()}
        return Round(tuple(returns), tuple(lengths), metrics)

    def advance(self, steps: int) -> None:
        """Play and learn for ``steps`` steps, rounded up to whole rounds."""
        end = self.step + steps
        while self.step < end:
            self._round()

    def take_metrics(self) -> dict[str, dict[int, float]]:
        """Means since the last call: the losses' metrics, and ``rollout_return`` and ``rollout_length`` of the episodes that ended."""
        metrics = self.learner.metrics()
        returns, lengths = self._ended
        if returns:
            metrics["rollout_return"], metrics["rollout_length"] = (
                {self._seed: float(np.mean(returns))},
                {self._seed: float(np.mean(lengths))},
            )
        self._ended = ([], [])
        return metrics

    def commit(self) -> None:
        """Make ended episodes durable, if a store keeps them."""
        if self.collector.writer is not None:
            self.collector.writer.commit()

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint of the learner keeps too, as JSON."""
        return {"step": self.step, "collector": self.collector.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, after the learner was restored; the environments start new episodes."""
        self.collector.load_state_dict(state["collector"])
        self._returns[:], self._lengths[:] = 0.0, 0

    def _round(self) -> None:
        config, began = self.learner.config, time.perf_counter()
        self._playing.begin(self.rounds * self._length)
        batch = self.collector.rollout(self._rows)
        if batch.reward.ndim == 1:
            batch = batch.map(lambda array: array[None])
        played, reward, ended = self._playing.notes, batch.reward, batch.done  # [N, T]
        self._note_ends(reward, ended)
        self.spent["environment"] += time.perf_counter() - began
        began = time.perf_counter()
        value = np.stack([step.value for step in played], axis=1)  # [N, T]
        seen = self._seen(batch)  # [N, T, ...] each
        next_value = self._next_values(value, batch, seen)
        if self._scale is not None:
            reward = np.stack([self._scale(reward[:, t], ended[:, t]) for t in range(self._length)], axis=1)
        gained = advantages(reward, value, next_value, ended, gamma=config.gamma, lam=config.gae_lambda)
        sums = gained + value
        if config.normalize_advantage:
            gained = (gained - gained.mean()) / (gained.std(ddof=1) + ADVANTAGE_EPS)
        columns = {
            "action": np.stack([step.drawn for step in played], axis=1),
            "value": value,
            "advantage": gained,
            "returns": sums,
            "log_prob": np.stack([step.log_prob for step in played], axis=1),
        }
        rows = {name: column.reshape(self._rows, *column.shape[2:]) for name, column in columns.items()}
        self._learn({name: field.reshape(self._rows, *field.shape[2:]) for name, field in seen.items()}, rows)
        self.spent["update"] += time.perf_counter() - began

    def close(self) -> None:
        """Close the collector; the episodes under way are cut."""
        self.collector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------ rollouts
    def _note_ends(self, reward: np.ndarray, ended: np.ndarray) -> None:
        """Record returns and lengths of the episodes that ended, in the order of their ends."""
        returns, lengths = self._ended
        for t in range(self._length):
            self._returns += reward[:, t]
            self._lengths += 1
            over = ended[:, t]
            returns += self._returns[over].tolist()
            lengths += self._lengths[over].tolist()
            self._returns[over], self._lengths[over] = 0.0, 0

    def _seen(self, batch: CollectedBatch) -> dict[str, np.ndarray]:
        """The observations that the policy acted on, frames stacked as the learner stacks them, ``[N, T, ...]`` each."""
        if self._playing.stacks:
            return {name: np.stack([seen[name] for seen in self._playing.seen], axis=1) for name in self.learner.actor.space.observation}
        return self._fields(batch.observation)

    def _next_values(self, value: np.ndarray, batch: CollectedBatch, seen: Mapping[str, np.ndarray]) -> np.ndarray:
        """The value of the state after each step, ``[N, T]``: 0 after a termination, of the final observation after a truncation."""
        following = np.concatenate([value[:, 1:], np.zeros_like(value[:, :1])], axis=1)
        following[batch.terminated] = 0.0
        missing = batch.truncated.copy()
        missing[:, -1] |= ~batch.done[:, -1]  # the state after the rollout has no value yet
        if missing.any():
            after = {name: field[missing] for name, field in self._fields(batch.next_observation).items()}
            if self._playing.stacks:
                after = {name: _pushed(seen[name][missing], field) for name, field in after.items()}
            following[missing] = self.learner.play(after, step=0).value
        return following

    def _fields(self, observation: Any) -> dict[str, np.ndarray]:
        """Observations by the names of the learner's fields."""
        return observation if isinstance(observation, dict) else {next(iter(self.learner.actor.space.observation)): observation}

    # ------------------------------------------------------------------------------------------------------------- updates
    def _learn(self, seen: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]) -> None:
        """Make the updates of a rollout from its rows."""
        learner, size = self.learner, self.learner.config.batch_size
        first = self.rounds * learner.config.epochs
        for epoch in range(first, first + learner.config.epochs):
            order = rng.permutation(self._seed, epoch, ORDER, self._rows, self._rows)
            for start in range(0, self._rows - size + 1, size):
                self._check()
                chosen = order[start : start + size]
                parts = {name: value[chosen] for name, value in rows.items()}
                learner.update(learner.rollout({name: value[chosen] for name, value in seen.items()}, **parts))


class _Playing(LearnerBehaviour):
    """A learner that draws its actions and notes them for its updates."""

    def __init__(self, learner: Learner, check: Callable[[], None]) -> None:
        super().__init__(learner)
        self._check = check
        self.stacks = learner.actor.space.frame_stack > 1
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start a rollout; ``step``: number of its first draw."""
        self.step = step
        self.notes: list[Played] = []
        self.seen: list[dict[str, np.ndarray]] = []

    def act_batch(self, observations: Any, starts: np.ndarray) -> np.ndarray:
        self._check()
        seen = self._stacked(observations, starts)
        if self.stacks:
            fields = seen if isinstance(seen, Mapping) else {next(iter(self._learner.actor.space.observation)): seen}
            self.seen.append({name: field.copy() for name, field in fields.items()})
        played: Played = self._learner.play(seen, step=self.step)
        self.step += 1
        self.notes.append(played)
        return self._to_env(played.action)


class _RewardScale:
    """Divides rewards by the running deviation of the discounted return (Engstrom et al. 2020) and clips them. Its sums are in the
    learner's carry, so checkpoints hold them."""

    def __init__(self, learner: Learner, environments: int) -> None:
        self._carry = learner.state.carry
        self._running = np.zeros(environments)

    def __call__(self, reward: np.ndarray, ended: np.ndarray) -> np.ndarray:
        self._running = REWARD_DISCOUNT * self._running + reward
        count, mean, square = (self._carry[f"return_{name}"] for name in ("count", "mean", "square"))
        before, rows = float(count[0]), len(reward)
        apart = self._running.mean() - float(mean[0])
        # The moments of two samples joined (Chan et al. 1979); `square` is the sum of squared distances from the mean.
        square += self._running.var() * rows + apart**2 * before * rows / (before + rows)
        mean += apart * rows / (before + rows)
        count += rows
        self._running[ended] = 0.0
        deviation = np.sqrt(float(square[0]) / float(count[0]) + REWARD_EPS)
        return np.clip(reward / deviation, -REWARD_LIMIT, REWARD_LIMIT)


def _pushed(stacks: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Add one frame ``[B, C, ...]`` (vectors ``[B, D]``, numbers ``[B]``) to stacks ``[B, k*C, ...]``, and drop the oldest."""
    frames = frames.reshape(len(frames), -1, *stacks.shape[2:])
    return np.concatenate([stacks[:, frames.shape[1] :], frames], axis=1)
