"""Policy files that remember: step by step in onnxruntime they act like the network on the whole window."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cheap_settings import cheap_settings

from offrl.errors import CheckFailed, InvalidInput
from offrl.policy import Policy
from offrl.rollout import evaluate
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import get
from offrld.engine import Learner
from offrld.evaluate.offline import evaluate_offline
from offrld.export.onnx import PolicyExporter, export_policy

L, STEPS = 4, 11
SETTINGS = {"max_timestep": 7, "transformer.layers": 2, "reward_scaler": "multiply", "reward_scaler.multiplier": 0.1}
names = pytest.mark.parametrize("name", ["decision_transformer", "discrete_decision_transformer", "tacr"])


def moved(learner: Learner) -> Learner:
    """Add noise to the parameters: initial ones hardly use the context."""
    random = torch.Generator().manual_seed(1)
    for value in learner.state.params.values():
        value += 0.3 * torch.randn(value.shape, generator=random)
    return learner


def learner_of(name, store, **values) -> Learner:
    algorithm = get(name)
    return moved(Learner.create(algorithm, algorithm.configure({**cheap_settings(algorithm), **SETTINGS, **values}), store))


@pytest.fixture(scope="module")
def files(tmp_path_factory, discrete_store, continuous_store):
    """Return a function name -> learner, module and file; each is exported once."""
    made = {}

    def of(name):
        if name not in made:
            learner = learner_of(name, discrete_store if name.startswith("discrete") else continuous_store)
            module, path = learner.policy(0), tmp_path_factory.mktemp("policies") / f"{name}.onnx"
            difference = export_policy(
                module, path, observation=("float32", (3,)), discrete=learner.space["discrete"], metadata={"space": learner.space}
            )
            assert difference < 1e-5
            made[name] = SimpleNamespace(learner=learner, module=module, path=path)
        return made[name]

    return of


def on_whole_windows(learner: Learner, observations, rewards, actions, target: float):
    """Run the network on a window built by hand; return the action ``[A]`` or the scores ``[n]`` of the last step.

    ``observations [T, 3]`` of the steps so far, ``rewards [T - 1]`` and ``actions [T - 1, ...]`` of those before the last.
    """
    scale, discrete = learner.scalers, learner.space["discrete"]
    steps = len(observations)
    first = max(0, steps - L)
    pad = L - (steps - first)
    returns = [0.1 * target]
    for reward in rewards:
        returns.append(returns[-1] - 0.1 * reward)

    def window(values, shape=(), dtype=torch.float32):
        values = torch.as_tensor(np.array(values[first:]), dtype=dtype).reshape(-1, *shape)
        return torch.cat([torch.zeros(pad, *shape, dtype=dtype), values])[None]

    observation = torch.as_tensor(np.array(observations), dtype=torch.float32)
    observation = observation if scale.observation["observation"] is None else scale.observation["observation"](observation)
    if discrete:
        action = window([*actions, 0], (), torch.int64)
    else:
        scaled = [scale.action(torch.as_tensor(a)).numpy() for a in actions]
        action = window([*scaled, np.zeros(2, np.float32)], (2,))
    inputs = SimpleNamespace(
        observation=window(observation.numpy(), (3,)),
        action=action,
        returns_to_go=window(returns),
        timesteps=window(np.arange(1, steps + 1), (), torch.int64),
        mask=window(np.ones(steps)),
    )
    params = {name: value[0] for name, value in learner.state.params.items()}
    out = learner.nets.actor(params, inputs)[0, -1].detach()
    return out.numpy() if discrete else scale.action.reverse(out).clamp(-2, 2).numpy()


def episode(seed: int):
    random = np.random.default_rng(seed)
    return random.normal(size=(STEPS, 3)).astype(np.float32) * [1, 5, 0.1] + [0, 3, 0], random.normal(size=STEPS) * 2


@names
def test_the_file_step_by_step_equals_the_network_on_the_whole_window(name, files):
    made = files(name)
    policy = Policy(made.path)
    assert policy.target_return == made.module.target_return
    for target, seed in ((None, 0), (-3.0, 1)):
        observations, rewards = episode(seed)
        policy.reset(target)
        actions, gaps = [], []
        for t in range(STEPS):
            action = policy.act(observations[t], rewards[t - 1] if t else 0.0)
            goal = policy.target_return if target is None else target
            expected = on_whole_windows(made.learner, observations[: t + 1], rewards[:t], actions, goal)
            if policy.discrete:
                gaps.append(expected.max() - expected[action])
            else:
                np.testing.assert_allclose(action, expected, atol=1e-5)
            actions.append(action)
        assert not policy.discrete or max(gaps) < 1e-5
        assert len({np.asarray(a).tobytes() for a in actions}) > 1  # the actions differ


@names
def test_rewards_target_and_memory_matter_and_reset_forgets(name, files):
    policy = Policy(files(name).path)
    observations, rewards = episode(2)

    def acted(target=None, rewards=rewards, observations=observations):
        policy.reset(target)
        return [np.asarray(policy.act(observations[t], rewards[t - 1] if t else 0.0)).tolist() for t in range(STEPS)]

    def scored(target=None, rewards=rewards):
        """Return the context's returns-to-go at the end."""
        acted(target, rewards)
        return policy._context._state["context.return_to_go"][0]

    once = acted()
    assert acted() == once
    np.testing.assert_allclose(scored(5.0)[-1], 0.1 * (5.0 - rewards[: STEPS - 1].sum()), rtol=1e-4)
    if not policy.discrete:
        assert acted(50.0) != once
        assert acted(rewards=rewards * 9)[0] == once[0]
        assert acted(rewards=rewards * 9)[1] != once[1]
        changed = observations.copy()
        changed[3] += 1.0
        assert acted(observations=changed)[:3] == once[:3]
        assert acted(observations=changed)[4] != once[4]


@names
def test_a_batch_of_episodes_acts_like_each_alone_and_one_may_restart(name, files):
    policy, alone = Policy(files(name).path), Policy(files(name).path)
    data = [episode(seed) for seed in range(3)]
    observations, rewards = np.stack([o for o, _ in data]).astype(np.float32), np.stack([r for _, r in data])
    targets = np.array([1.0, 5.0, -2.0])
    policy.reset(targets)
    together = [policy.predict(observations[:, t], None if t == 0 else rewards[:, t - 1]) for t in range(STEPS)]
    for i in range(3):
        alone.reset(targets[i])
        for t in range(STEPS):
            np.testing.assert_allclose(alone.act(observations[i, t], rewards[i, t - 1] if t else 0.0), together[t][i], atol=1e-5)
    restarted = policy.predict(observations[:, 0], np.full(3, 7.0), starts=np.array([False, True, False]))
    np.testing.assert_allclose(restarted[1], together[0][1], atol=1e-5)


def test_plain_onnxruntime_can_step_the_file_by_feeding_the_context_back(files):
    made = files("decision_transformer")
    session = onnxruntime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    assert list(inputs) == [
        "observation",
        "reward",
        "target_return",
        "context.observation",
        "context.action",
        "context.return_to_go",
        "context.length",
    ]
    assert [o.name for o in session.get_outputs()] == ["action", *(f"next_{n}" for n in inputs if n.startswith("context."))]
    metadata = {p.key: json.loads(p.value) for p in onnx.load(made.path).metadata_props}
    assert metadata["offrl.format"] == 2
    assert metadata["offrl.context"] == {"length": L, "target_return": made.module.target_return}
    assert metadata["offrl.space"]["observation"] == {"observation": {"dtype": "float32", "shape": [3]}}
    dtypes = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    context = {n: np.zeros((1, *i.shape[1:]), dtypes[i.type]) for n, i in inputs.items() if n.startswith("context.")}
    observations, rewards = episode(4)
    policy = Policy(made.path)
    policy.reset(3.0)
    for t in range(STEPS):
        inputs_now = {
            "observation": observations[t : t + 1].astype(np.float32),
            "target_return": np.array([3.0], np.float32),
            "reward": np.array([rewards[t - 1] if t else 0.0], np.float32),
        }
        action, *following = session.run(None, inputs_now | context)
        context = dict(zip(context, following, strict=True))
        np.testing.assert_array_equal(action[0], policy.act(observations[t], rewards[t - 1] if t else 0.0))
    assert context["context.length"].tolist() == [STEPS]


def test_a_context_length_of_zero_starts_an_episode_whatever_the_rest_holds(files):
    module = files("decision_transformer").module
    observation = torch.randn(3, 3)
    clean = module.start(3, 2.0)
    used = {name: torch.full_like(value, 0.5) if value.is_floating_point() else value for name, value in clean.items()}
    used["target_return"] = clean["target_return"]
    assert torch.equal(module(observation=observation, **used)[0], module(observation=observation, **clean)[0])


@names
def test_the_second_export_needs_no_trace(name, discrete_store, continuous_store, tmp_path):
    discrete, exporter = name.startswith("discrete"), PolicyExporter()
    learner = learner_of(name, discrete_store if discrete else continuous_store)
    observation = ("float32", (3,))
    exporter.export(learner.policy(0), tmp_path / "one.onnx", observation=observation, discrete=discrete)
    other = moved(learner).policy(0)
    exporter.export(other, tmp_path / "two.onnx", observation=observation, discrete=discrete)
    assert exporter.traces == 1
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    expected = other(observation=torch.from_numpy(rows), **other.start(7))[0].numpy()
    np.testing.assert_allclose(Policy(tmp_path / "two.onnx").predict(rows), expected, atol=1e-5)


def test_a_context_that_differs_from_the_network_fails_the_export(files, tmp_path):
    made = files("decision_transformer")

    class Forgetful(type(made.module)):
        def forward(self, **inputs):
            action, *following = super().forward(**inputs)
            return action, *(following if not torch.compiler.is_compiling() else [x * 0 for x in following])

    module = made.learner.policy(0)
    module.__class__ = Forgetful
    with pytest.raises(CheckFailed, match="differs from the network"):
        export_policy(module, tmp_path / "p.onnx", observation=("float32", (3,)), discrete=False)
    assert not (tmp_path / "p.onnx").exists()


def test_several_fields_images_and_stacked_frames(tmp_path):
    schema = Schema(
        observation={"camera": Field("uint8", (1, 36, 36)), "arm": Field("float32", (2,))},
        action=Field("float32", (1,), low=-1, high=1),
        reward=Field("float32"),
    )
    store, random = EpisodeStore.create(tmp_path / "store", schema), np.random.default_rng(0)
    with store.writer() as writer:
        for _ in range(3):
            episode = {"camera": random.integers(0, 255, (7, 1, 36, 36)).astype("u1"), "arm": random.normal(size=(7, 2)).astype("f4")}
            writer.append(
                Episode(
                    observation=episode,
                    action=random.uniform(-1, 1, (6, 1)).astype("f4"),
                    reward=np.ones(6, np.float32),
                    terminated=False,
                )
            )
    store = EpisodeStore.open(tmp_path / "store")
    learner = learner_of("decision_transformer", store, frame_stack=2, **{"encoder.feature_size": 8})
    learner.run(1)
    module = learner.policy(0)
    observation = dict(learner.space_.inputs)
    assert observation["camera"] == ("uint8", (2, 36, 36))
    export_policy(module, tmp_path / "p.onnx", observation=observation, discrete=False, metadata={"space": learner.space})
    policy = Policy(tmp_path / "p.onnx")
    assert policy.frame_stack == 2
    assert policy.observation_shapes == {"camera": (1, 36, 36), "arm": (2,)}
    context = module.start(1)
    for t in range(6):
        frames = {
            name: np.concatenate([values[t - 1] if t else np.zeros_like(values[0]), values[t]])[None] for name, values in episode.items()
        }
        stacked = {name: torch.from_numpy(value) for name, value in frames.items()}
        action, *following = module(**stacked, **context)
        context |= dict(zip(module.context, following, strict=True))
        context["reward"] = torch.ones(1)
        acted = policy.act({name: values[t] for name, values in episode.items()}, 1.0 if t else 0.0)
        np.testing.assert_allclose(acted, action[0].numpy(), atol=1e-5)


def test_a_field_named_like_an_input_is_refused(files, tmp_path):
    with pytest.raises(CheckFailed, match="called 'reward'"):
        export_policy(files("tacr").module, tmp_path / "p.onnx", observation={"reward": ("float32", (3,))}, discrete=False)


class Corridor(gymnasium.Env):
    """Records the actions. The observation is the number of the step, the reward 1.5 per step; an episode ends after 6 steps."""

    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.time, self.actions = 0, []
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.time, self.actions = self.time + 1, [*self.actions, action]
        return np.full(3, self.time, np.float32), 1.5, self.time == 6, False, {}


def test_a_rollout_feeds_rewards_back_and_resets_the_policy_for_each_episode(files):
    made, env = files("decision_transformer"), Corridor()
    result = evaluate(made.path, env, episodes=2, target_return=4.0)
    assert result.returns == (9.0, 9.0)
    assert result.as_json()["target_return"] == 4.0
    observations = [np.full(3, t, np.float32) for t in range(6)]
    for t in range(6):
        expected = on_whole_windows(made.learner, observations[: t + 1], [1.5] * t, env.actions[:t], 4.0)
        np.testing.assert_allclose(env.actions[t], expected, atol=1e-5)
    assert evaluate(made.path, env, episodes=1).as_json()["target_return"] == made.module.target_return


def test_a_wrong_value_is_named_in_one_line(files):
    policy = Policy(files("decision_transformer").path)
    rows = np.zeros((2, 3), np.float32)
    for wrong, words in (
        (lambda: policy.reset(float("nan")), "target_return is nan"),
        (lambda: policy.reset("much"), "target_return is 'much'"),
        (lambda: policy.act(rows[0], float("inf")), "reward is inf"),
        (lambda: (policy.reset(), policy.predict(rows), policy.act(rows[0])), "1 observations, but 2 episodes"),
        (lambda: (policy.reset([1.0, 2.0]), policy.predict(rows[:1])), "for 1 episodes"),
        (lambda: (policy.reset(), policy.predict(rows, np.zeros(3))), "for 2 episodes"),
        (lambda: (policy.reset(), policy.predict(rows, starts=[0, 1])), "starts"),
    ):
        with pytest.raises(InvalidInput, match=words) as caught:
            wrong()
        assert "\n" not in str(caught.value) and caught.value.hint


@names
@pytest.mark.parametrize("frames", [1, 3])
def test_a_policy_is_evaluated_along_held_out_episodes_as_recorded(name, frames, discrete_store, continuous_store):
    """The reference steps the policy by hand: the dataset's action replaces its own, and the target is the episode's return."""
    store = discrete_store if name.startswith("discrete") else continuous_store
    algorithm = get(name)
    config = algorithm.configure({**cheap_settings(algorithm), **SETTINGS, "frame_stack": frames})
    learner = moved(Learner.create(algorithm, config, store, holdout=0.3))
    module, pairs = learner.policy(0), []
    for number in learner.holdout:
        episode = store.episodes[int(number)]
        padded = np.concatenate([np.zeros((frames - 1, 3), np.float32), episode.observation])
        inputs = module.start(1, float(episode.reward.sum()))
        for t in range(episode.steps - (1 if episode.final_missing and not episode.terminated else 0)):
            inputs["reward"] = torch.tensor([episode.reward[t - 1] if t else 0.0])
            action, *following = module(observation=torch.from_numpy(padded[t : t + frames].reshape(1, -1)), **inputs)
            inputs.update(zip(module.context, following, strict=True))
            inputs["context.action"][:, -1] = torch.tensor(episode.action[t])
            pairs.append((action[0].numpy(), episode.action[t]))
    predicted, recorded = (np.array(values, np.float64) for values in zip(*pairs, strict=True))
    expected = np.mean(predicted == recorded) if module.space.discrete else np.square(predicted - recorded).sum(1).mean()
    ((_, by_seed),) = evaluate_offline(learner).items()
    assert by_seed[0] == pytest.approx(expected, rel=1e-4)
