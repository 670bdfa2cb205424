"""PPO where it plays: its updates against an independent computation, its settings, resuming, its policy file, and that it learns."""

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
from offrld import build, settings
from offrld.algos import get
from offrld.collect.on_policy import Frames, OnPolicy, advantages
from offrld.engine import Learner, Optimizer
from offrld.engine.building import Shapes
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


def vector(count=2, **options):
    return SyncVectorEnv([functools.partial(Cliff, **options)] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def made(values=None, *, discrete=True, envs=None, **options) -> OnPolicy:
    envs = envs or vector(discrete=discrete)
    config = PPO.configure(cheap_settings(PPO, {"batch_size": 8, **SMALL, **(values or {})}))
    shapes = Shapes.of_env(Cliff(discrete=discrete) if not isinstance(envs, SyncVectorEnv) else envs.envs[0])
    return OnPolicy(Learner.create(PPO, config, shapes, device="cpu", **options), envs)


def state_after(rounds, values=None, **options):
    trained = made(values, **options)
    for _ in range(rounds):
        trained.round()
    return trained.learner.state.tensors()


# --- Right ---
def test_advantages_are_those_of_a_plain_loop_and_stay_within_their_episode():
    rng = np.random.default_rng(0)
    reward, value, next_value = rng.normal(size=(3, 9, 4))
    ended = rng.random((9, 4)) < 0.3
    found = advantages(reward, value, next_value, ended, gamma=0.9, lam=0.8)
    for n in range(4):
        for t in range(9):
            total, weight = 0.0, 1.0
            for later in range(t, 9):
                total += weight * (reward[later, n] + 0.9 * next_value[later, n] - value[later, n])
                weight *= 0.9 * 0.8
                if ended[later, n]:
                    break
            np.testing.assert_allclose(found[t, n], total, rtol=1e-12)


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


def test_what_is_learned_from_is_what_was_played():
    steps, trained = [], made({"normalize_advantage": False, "epochs": 1, "batch_size": 16, "gamma": 0.9})
    trained._observe = steps.append
    batches, own = [], trained.learner.update
    trained.learner.update = lambda batch: (batches.append(batch), own(batch))[1]
    values = {name: value.clone() for name, value in trained.learner.state.params.items()}
    result = trained.round()
    (batch,) = batches
    net, params = trained.learner.nets.policy, {name: value[0] for name, value in values.items()}

    def worth(observation):
        return net.value(params, torch.as_tensor(np.asarray(observation))).detach().numpy()

    expected, ends = {}, 0
    for n in range(2):
        for t in range(8):
            total, weight = 0.0, 1.0
            for later in range(t, 8):
                step = steps[later]
                ended = step.terminated[n] or step.truncated[n]
                if step.terminated[n]:
                    follows = 0.0
                elif step.truncated[n]:
                    follows = worth(step.final[n]["observation"][None])[0]
                else:
                    follows = worth(step.next_observation["observation"][n][None])[0]
                delta = step.reward[n] + 0.9 * follows - worth(step.observation["observation"][n][None])[0]
                total, weight = total + weight * delta, weight * 0.9 * 0.95
                if ended:
                    break
            expected[steps[t].observation["observation"][n].tobytes()] = total
    ends = sum(int((step.terminated | step.truncated).sum()) for step in steps)
    assert ends == len(result.returns) == len(result.lengths)
    assert ends > 0
    for row, advantage in zip(batch.observation.numpy(), batch.advantage.numpy(), strict=True):
        np.testing.assert_allclose(advantage, expected.pop(row.tobytes()), rtol=1e-4, atol=1e-5)
    assert not expected


def test_frames_are_stacked_within_an_episode_and_zero_before_it():
    space = build("ppo", Shapes.of((1, 2, 2), actions=2), config={"frame_stack": 3, "encoder.filters": [4, 1, 1]}).space_
    frames = Frames(space)
    shown = [np.full((2, 1, 2, 2), t + 1, np.uint8) for t in range(4)]
    frames.reset({"observation": shown[0]})
    frames.push({"observation": shown[1]}, np.array([False, False]))
    last = frames.after(np.array([1]), {1: {"observation": np.full((1, 2, 2), 9)}})["observation"]
    frames.push({"observation": shown[2]}, np.array([False, True]))
    assert frames.seen["observation"][:, :, 0, 0].tolist() == [[1, 2, 3], [0, 0, 3]]
    assert last[:, :, 0, 0].tolist() == [[1, 2, 9]]


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    rewards, ends, trained = [], [], made({"normalize_reward": True})
    trained._observe = lambda step: (rewards.append(step.reward), ends.append(step.terminated | step.truncated))
    scaled, own = [], trained._normal
    trained._normal = lambda reward, ended: (scaled.append(own(reward, ended)), scaled[-1])[1]
    trained.round()
    running, seen = np.zeros(2), []
    for t in range(8):
        running = 0.99 * running + rewards[t]
        seen += running.tolist()
        np.testing.assert_allclose(scaled[t], (rewards[t] / np.sqrt(np.var(seen) + 1e-8)).clip(-10, 10), rtol=1e-4)
        running[ends[t]] = 0.0


# --- Every setting ---
OWN = [name for name in settings.describe(PPO.config) if "." not in name]


@pytest.mark.parametrize("name", OWN)
def test_every_setting_matters(name):
    discrete = name != "log_std"
    envs = functools.partial(vector, discrete=discrete)
    common, changed = settings.contrast(settings.describe(PPO.config), name)
    if name == "batch_size":
        changed = {"batch_size": 4}
    one, other = (state_after(2, values, envs=envs(), discrete=discrete) for values in (common, changed))
    assert one.keys() != other.keys() or any(one[key].shape != other[key].shape or not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("slot", "kind", "setting"), [("encoder", Encoder, "units"), ("optimizer", Optimizer, "weight_decay"),
                                                       ("observation_scaler", None, "type")])  # fmt: skip
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
    # The environment begins anew after a restart; given the same play, the updates are the same bits.
    trained = made({"normalize_reward": True})
    trained.round()
    trained.learner.save(tmp_path / "state.safetensors")
    copy = made({"normalize_reward": True})
    copy.learner.restore(tmp_path / "state.safetensors")
    assert (copy.rounds, copy.steps) == (trained.rounds, trained.steps) == (1, 16)
    for each in (trained, copy):
        fresh = OnPolicy(each.learner, vector(discrete=True))
        fresh.round()
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
    envs = vector(discrete=True, images=True)
    trained = made({"encoder.type": "impala", "encoder.channels": [4, 4], "encoder.feature_size": 8, "observation_scaler": "pixel",
                    "shared_encoder": True, "frame_stack": 2}, envs=envs)  # fmt: skip
    result = trained.round()
    assert all(np.isfinite(value) for value in result.metrics.values())
    module, path = trained.learner.policy(), tmp_path / "policy.onnx"
    difference = export_policy(
        module, path, observation=("uint8", (4, 12, 12)), discrete=True, metadata={"space": trained.learner.space}
    )
    assert difference < 1e-4


def test_a_dataset_is_refused(discrete_store):
    with pytest.raises(InvalidInput, match="learns from its own play"):
        build("ppo", discrete_store)


def test_environments_that_reset_in_the_next_step_are_refused():
    envs = SyncVectorEnv([functools.partial(Cliff, discrete=True)] * 2)
    with pytest.raises(InvalidInput, match="reset in the step"):
        made(envs=envs)


def test_a_rollout_smaller_than_a_batch_is_refused():
    with pytest.raises(InvalidInput, match="a rollout of 16 steps"):
        made({"batch_size": 17})


def test_it_balances_the_pole():
    envs = gymnasium.make_vec("CartPole-v1", 8, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP})
    values = {"rollout_steps": 32, "batch_size": 256, "epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3}
    learner = build("ppo", gymnasium.make("CartPole-v1"), config=values, device="cpu")
    trained = OnPolicy(learner, envs)
    while trained.steps < 30_000:
        trained.round()
    greedy = learner.policy()
    env, totals = gymnasium.make("CartPole-v1"), []
    for seed in range(5):
        observation, _ = env.reset(seed=1000 + seed)
        total, ended = 0.0, False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(int(greedy(torch.from_numpy(observation[None]))[0]))
            total, ended = total + float(reward), terminated or truncated
        totals.append(total)
    assert np.mean(totals) >= 475
