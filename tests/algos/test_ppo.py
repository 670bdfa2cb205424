"""PPO: its updates against an independent computation, its settings, resuming, its policy file, and that it learns."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch
from cheap_settings import cheap_settings
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import offrl
from offrl.errors import InvalidInput
from offrl_store import EpisodeStore
from offrld import build, settings
from offrld.algos import get
from offrld.collect import LearnerBehaviour, collect_episodes
from offrld.collect.on_policy import OnPolicy, advantages
from offrld.engine import Learner, Optimizer
from offrld.engine.learner.shapes import Shapes
from offrld.export.onnx import export_policy
from offrld.nets import Encoder

PPO = get("ppo")
SMALL = {"rollout_steps": 8, "epochs": 2}


class Cliff(gymnasium.Env):
    """Three numbers that drift with the action; terminated where they get large, so that episodes end in every way within 30 steps."""

    def __init__(self, *, discrete: bool, limit: int = 11, images: bool = False) -> None:
        low, high = (0, 255) if images else (-np.inf, np.inf)
        self._shape, self._limit, self._images = (2, 12, 12) if images else (3,), limit, images
        self.observation_space = gymnasium.spaces.Box(low, high, self._shape, np.uint8 if images else np.float32)
        self.action_space = gymnasium.spaces.Discrete(3) if discrete else gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x, self._t = self.np_random.normal(size=3) * 0.1, 0
        return self._seen(), {}

    def step(self, action):
        push = np.sum(action) * 0.3
        self._x = 0.9 * self._x + push + self.np_random.normal(size=3) * 0.1
        self._t += 1
        return self._seen(), float(1 - abs(self._x[0])), bool(abs(self._x).max() > 1.2), self._t >= self._limit, {}

    def _seen(self):
        if not self._images:
            return self._x.astype(np.float32)
        return np.resize((self._x * 50 + 128).clip(0, 255), self._shape).astype(np.uint8)


def made(values=None, *, discrete=True, env=None, envs=2, into=None, learner=None, **options) -> OnPolicy:
    env = env or functools.partial(Cliff, discrete=discrete)
    config = PPO.configure(cheap_settings(PPO, {"batch_size": 8, **SMALL, **(values or {})}))
    learner = learner or Learner.create(PPO, config, Shapes.of_env(env()), device="cpu", **options)
    return OnPolicy(learner, env, envs=envs, into=into)


def state_after(rounds, values=None, **options):
    with made(values, **options) as trained:
        for _ in range(rounds):
            trained.round()
        return trained.learner.state.tensors()


# --- Right ---
def test_advantages_are_those_of_a_plain_loop_and_stay_within_their_episode():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 4, 9))
    ended = rng.random((4, 9)) < 0.3
    found = advantages(reward, value, next_value, ended, gamma=0.9, lam=0.8)
    for n in range(4):
        for t in range(9):
            total, weight = 0.0, 1.0
            for later in range(t, 9):
                total += weight * (reward[n, later] + 0.9 * next_value[n, later] - value[n, later])
                weight *= 0.9 * 0.8
                if ended[n, later]:
                    break
            np.testing.assert_allclose(found[n, t], total, rtol=1e-12)


@pytest.mark.parametrize("discrete", [True, False])
def test_an_update_equals_torchs_own_classes(discrete):
    # The loss written once more with torch.distributions, and torch's Adam and clipping.
    values = {"clip_value": True, "entropy_coef": 0.07, "encoder.units": [6], "optimizer.clip_grad_norm": 0.2}
    trained = made(values, discrete=discrete, dtype=torch.float64)
    learner, seen = trained.learner, []
    own = learner.update
    learner.update = lambda batch: (seen.append(batch), own(batch))[1]
    params = {name: value[0].detach().clone().requires_grad_() for name, value in learner.state.params.items()}
    adam = torch.optim.Adam(params.values(), lr=learner.config.learning_rate, eps=1e-5)
    trained.round()
    trained.round()
    assert len(seen) == 2 * trained.updates_per_round
    for batch in seen:
        hidden = [
            torch.tanh(batch.observation @ params[f"policy.{name}.0.weight"].T + params[f"policy.{name}.0.bias"])
            for name in ("encoder", "value_encoder")
        ]
        out = hidden[0] @ params["policy.policy.weight"].T + params["policy.policy.bias"]
        value = (hidden[1] @ params["policy.value.weight"].T + params["policy.value.bias"]).squeeze(-1)
        if discrete:
            spread = torch.distributions.Categorical(logits=out)
            log_prob, entropy = spread.log_prob(batch.action), spread.entropy().mean()
        else:
            spread = torch.distributions.Normal(out, params["policy.log_std"].exp())
            log_prob, entropy = spread.log_prob(batch.action).sum(-1), spread.entropy().sum(-1).mean()
        ratio = torch.exp(log_prob - batch.log_prob)
        actor = -torch.min(ratio * batch.advantage, ratio.clip(0.8, 1.2) * batch.advantage).mean()
        near = batch.value + (value - batch.value).clip(-0.2, 0.2)
        worth = 0.5 * torch.max((value - batch.returns) ** 2, (near - batch.returns) ** 2).mean()
        adam.zero_grad()
        (actor + 0.5 * worth - 0.07 * entropy).backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 0.2)
        adam.step()
    for name, value in params.items():
        torch.testing.assert_close(learner.state.params[name][0], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("frames", [1, 3])
def test_training_uses_exactly_the_steps_of_the_rollout(count, frames, tmp_path):
    # The store that kept the play is what everything is computed from once more.
    values = {"normalize_advantage": False, "epochs": 1, "batch_size": 24 * count, "rollout_steps": 24, "gamma": 0.9, "frame_stack": frames}
    env = functools.partial(Cliff, discrete=True)
    trained = made(values, env=env, envs=count, into=tmp_path / "play")
    batches, own = [], trained.learner.update
    trained.learner.update = lambda batch: (batches.append(batch), own(batch))[1]
    params = {name: value[0].clone() for name, value in trained.learner.state.params.items()}
    result = trained.round()
    trained.close()
    (batch,) = batches

    def worth(stack):
        return trained.learner.nets.policy.value(params, torch.from_numpy(np.concatenate(stack))).item()

    expected, ends = {}, []
    store = EpisodeStore.open(tmp_path / "play")
    for episode in store.episodes:
        shown = [np.zeros(3, np.float32)] * (frames - 1) + list(episode.observation)
        stacks = [shown[t : t + frames] for t in range(episode.steps + 1)]
        values = [worth(stack) for stack in stacks[:-1]] + [0.0 if episode.terminated else worth(stacks[-1])]
        gained = 0.0
        for t in reversed(range(episode.steps)):
            gained = episode.reward[t] + 0.9 * values[t + 1] - values[t] + 0.9 * 0.95 * gained
            expected[np.concatenate(stacks[t]).tobytes()] = gained, gained + values[t], int(episode.action[t])
        ends.append((float(episode.reward.sum()), episode.steps))
    whole = sorted(zip(np.round(result.returns, 4), result.lengths, strict=True))
    assert len(whole) == len(ends) - count  # the last of each was cut by closing
    assert set(whole) < {(round(total, 4), steps) for total, steps in ends}
    assert any(episode.terminated for episode in store.episodes)
    rows = (batch.observation, batch.advantage, batch.returns, batch.action)
    for seen, advantage, returns, action in zip(*(each.numpy() for each in rows), strict=True):
        np.testing.assert_allclose((advantage, returns, action), expected.pop(seen.tobytes()), rtol=1e-4, atol=1e-5)
    assert not expected


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    trained = made({"normalize_reward": True})
    given, scaled, own = [], [], trained._scale
    trained._scale = lambda reward, ended: (given.append((reward, ended)), scaled.append(own(reward, ended)), scaled[-1])[2]
    trained.round()
    running, seen = np.zeros(2), []
    for (reward, ended), found in zip(given, scaled, strict=True):
        running = 0.99 * running + reward
        seen += running.tolist()
        np.testing.assert_allclose(found, (reward / np.sqrt(np.var(seen) + 1e-8)).clip(-10, 10), rtol=1e-4)
        running[ended] = 0.0
    assert len(seen) == 16


# --- Every setting ---
OWN = [name for name in settings.describe(PPO.config) if "." not in name]


@pytest.mark.parametrize("name", OWN)
def test_every_setting_matters(name):
    discrete = name != "log_std"
    common, changed = settings.contrast(settings.describe(PPO.config), name)
    if name == "batch_size":
        changed = {"batch_size": 4}
    one, other = (state_after(2, values, discrete=discrete) for values in (common, changed))
    assert one.keys() != other.keys() or any(one[key].shape != other[key].shape or not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("slot", "kind", "setting"),
    [("encoder", Encoder, "units"), ("optimizer", Optimizer, "weight_decay"), ("observation_scaler", None, "type")],
)
def test_every_component_is_read(slot, kind, setting):
    changed = {"encoder": {"encoder.units": [5]}, "optimizer": {"optimizer.weight_decay": 0.5}}.get(slot, {})
    if slot == "observation_scaler":
        changed = {"observation_scaler": "standard", "observation_scaler.mean": [0.5, 0, 0], "observation_scaler.std": [2.0, 1, 1]}
    one, other = state_after(1), state_after(1, changed)
    assert any(one[key].shape != other[key].shape or not torch.equal(one[key], other[key]) for key in one)


# --- As every algorithm ---
@pytest.mark.parametrize("discrete", [True, False])
def test_each_loss_is_one_graph(discrete, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    eager, compiled = (state_after(1, discrete=discrete, dtype=torch.float64, runner=runner) for runner in ("eager", "compile"))
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-9, atol=1e-12)


def test_a_checkpoint_holds_all_that_the_next_updates_need(tmp_path):
    # The environment starts again after a restart; given the same play, the updates are the same bits.
    trained = made({"normalize_reward": True})
    trained.round()
    trained.learner.save(tmp_path / "state.safetensors")
    copy = made({"normalize_reward": True})
    copy.learner.restore(tmp_path / "state.safetensors")
    assert (copy.rounds, copy.step) == (trained.rounds, trained.step) == (1, 16)
    for each in (trained, copy):
        made(learner=each.learner).round()
    for name, value in trained.learner.state.tensors().items():
        assert torch.equal(copy.learner.state.tensors()[name], value), name


@pytest.mark.parametrize("discrete", [True, False])
def test_its_policy_file_acts_as_the_network_does(discrete, tmp_path):
    trained = made(discrete=discrete)
    trained.round()
    module, path = trained.learner.policy(), tmp_path / "policy.onnx"
    space = trained.learner.space
    assert export_policy(module, path, observation=("float32", (3,)), discrete=discrete, metadata={"space": space}) < 1e-5
    observations = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    np.testing.assert_allclose(offrl.Policy(path).predict(observations), module(torch.from_numpy(observations)).numpy(), atol=1e-5)


def test_images_go_through_the_residual_network(tmp_path):
    trained = made(
        {
            "encoder.type": "impala",
            "encoder.channels": [4, 4],
            "encoder.feature_size": 8,
            "observation_scaler": "pixel",
            "shared_encoder": True,
            "frame_stack": 2,
        },
        env=functools.partial(Cliff, discrete=True, images=True),
    )
    result = trained.round()
    assert all(np.isfinite(value) for value in result.metrics.values())
    module, path = trained.learner.policy(), tmp_path / "policy.onnx"
    difference = export_policy(module, path, observation=("uint8", (4, 12, 12)), discrete=True, metadata={"space": trained.learner.space})
    assert difference < 1e-4


def test_a_dataset_is_refused(discrete_store):
    with pytest.raises(InvalidInput, match="learns from its own rollouts"):
        build("ppo", discrete_store)


def test_environments_that_spend_a_step_on_their_reset_are_refused():
    envs = gymnasium.vector.SyncVectorEnv([functools.partial(Cliff, discrete=True)] * 2)
    with pytest.raises(InvalidInput, match="spend a step on their reset"):
        OnPolicy(made().learner, envs)


def test_environments_that_reset_within_the_step_give_the_same_rollout():
    envs = SyncVectorEnv([functools.partial(Cliff, discrete=True)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    given, own = OnPolicy(made().learner, envs), made()
    assert given.round() == own.round()


def test_a_rollout_smaller_than_a_batch_is_refused():
    with pytest.raises(InvalidInput, match="a rollout of 16 steps"):
        made({"batch_size": 17})


def test_it_balances_the_pole():
    values = {"rollout_steps": 32, "batch_size": 256, "epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3}
    learner = build("ppo", gymnasium.make("CartPole-v1"), config=values, device="cpu")
    with OnPolicy(learner, "CartPole-v1", envs=8) as trained:
        while trained.step < 30_000:
            trained.round()
    greedy = LearnerBehaviour(learner, deterministic=True)
    episodes = collect_episodes("CartPole-v1", greedy, episodes=5, seed=1000)
    assert np.mean([episode.reward.sum() for episode in episodes]) >= 475


def test_fit_online_works_for_an_on_policy_algorithm(tmp_path):
    learner = build("ppo", gymnasium.make("CartPole-v1"), config={"rollout_steps": 64, "encoder.units": [16]}, device="cpu")
    epochs = learner.fit_online("CartPole-v1", tmp_path / "play", steps=256, steps_per_epoch=128, envs=2)
    assert [epoch for epoch, _ in epochs] == [1, 2]
    assert {"actor_loss", "rollout_return"} <= epochs[0][1].keys()
    assert sum(episode.steps for episode in EpisodeStore.open(tmp_path / "play").episodes) == 256
    with pytest.raises(InvalidInput, match="ppo takes no updates"):
        learner.fit_online("CartPole-v1", steps=10, updates=3)
