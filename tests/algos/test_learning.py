"""Each algorithm solves a small problem whose answer is known, within seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cheap_settings import FROM_DATA

import offrld
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import get

ACTION = Field("float32", (2,), low=-1, high=1)
STATES = torch.tensor([[0.5, -0.5], [-0.3, 0.8], [0.0, 0.0], [-0.7, -0.6]])
CELLS = torch.stack([torch.arange(4) / 4, torch.ones(4)], -1)
PATH = torch.tensor([0.9**3, 0.9**2, 0.9, 1.0])  # values of walking right in the corridor


def fill(path, action, episodes):
    store = EpisodeStore.create(path, Schema(observation=Field("float32", (2,)), action=action, reward=Field("float32")))
    with store.writer() as writer:
        for episode in episodes:
            writer.append(episode)
    return EpisodeStore.open(path)


def trained(name, store, steps, values, **inputs):
    """Train a learner with small networks for few updates."""
    algorithm = get(name)
    small = {"batch_size": 64}
    for encoder in ("encoder", "actor_encoder", "critic_encoder", "value_encoder", "imitator_encoder", "dynamics_encoder"):
        if hasattr(algorithm.config, encoder):
            small[f"{encoder}.units"] = [32, 32]
    for rate in ("learning_rate", "actor_learning_rate", "critic_learning_rate", "imitator_learning_rate", "dynamics_learning_rate"):
        if hasattr(algorithm.config, rate):
            small[rate] = 3e-3
    return offrld.train(name, store, steps=steps, config={**small, **values}, inputs=inputs)


# --- The best action in random data ---
@pytest.fixture(scope="module")
def reaching(tmp_path_factory):
    """One-step episodes: random actions in [-1, 1]^2, reward -(a - x)^2 where x is the observation: the best action is x itself.

    The last observation is x and a little noise: a model could be infinitely sure of x itself, and would learn nothing but that."""
    random = np.random.default_rng(0)

    def episodes():
        for _ in range(2000):
            x = random.uniform(-0.9, 0.9, (1, 2)).astype(np.float32)
            a = random.uniform(-1, 1, (1, 2)).astype(np.float32)
            after = x + random.normal(0, 0.1, (1, 2)).astype(np.float32)
            yield Episode(observation=np.concatenate([x, after]), action=a, reward=-((a - x) ** 2).sum(-1), terminated=True)

    return fill(tmp_path_factory.mktemp("reaching") / "store", ACTION, episodes())


COOL = {"temp_learning_rate": 0.0, "initial_temperature": 0.03}
VAE = {"beta": 0.01}
BEAR = {"warmup_steps": 50, "vae_kl_weight": 0.01}
# A spectrally normalised model cannot rise faster than its input: rewards are made to fit. MOPO's policy sees no real transition at all.
SCALED = {"reward_scaler": "multiply", "reward_scaler.multiplier": 0.2}
MODEL = {
    **COOL, **SCALED, "initial_temperature": 0.01, "dynamics_steps": 250, "rollout_batch_size": 500, "rollout_interval": 100,
    "rollout_horizon": 2, "gamma": 0.5, "n_ensembles": 2,
}  # fmt: skip
CONTINUOUS = {
    "ddpg": (300, {"tau": 0.05}),
    "td3": (400, {}),
    "td3_bc": (400, {"alpha": 10.0}),
    "prdc": (400, {"alpha": 5.0}),
    "rebrac": (400, {}),
    "iql": (700, {"weight_temp": 8.0, "max_weight": 1e5, "expectile": 0.5}),
    "awac": (500, {"lam": 0.1}),
    "crr": (500, {"beta": 0.1}),
    "sac": (300, COOL),
    "sac_n": (300, {**COOL, "n_critics": 4}),
    "edac": (300, {**COOL, "n_critics": 4, "eta": 0.1}),
    "cql": (300, {**COOL, "alpha_learning_rate": 0.0, "initial_alpha": 0.02}),
    "cal_ql": (300, {**COOL, "alpha_learning_rate": 0.0, "initial_alpha": 0.02}),
    "bcq": (600, {**VAE, "n_action_samples": 10, "action_flexibility": 0.5}),
    "bear": (400, {**COOL, **BEAR, "alpha_threshold": 0.5, "n_action_samples": 10}),
    "plas": (600, {**VAE, "warmup_steps": 250}),
    "plas_with_perturbation": (600, {**VAE, "warmup_steps": 250}),
    "mopo": (600, {**MODEL, "lam": 0.1, "real_ratio": 0.0}),
    "combo": (600, {**MODEL, "conservative_weight": 0.1, "n_action_samples": 4, "real_ratio": 0.2}),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_it_finds_the_best_continuous_action_in_random_data(name, reaching):
    steps, values = CONTINUOUS[name]
    action = trained(name, reaching, steps, values).policy(0)(STATES)
    error = (action - STATES).abs().max()
    assert error < 0.4, f"{name}: {action.tolist()}"  # imitation of the random data gives 0: an error of 0.8


# --- What the data does not show ---
@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """One-step episodes with actions in [0.2, 0.5]^2 only, and more reward for larger ones: beyond the data, values look still better."""
    random = np.random.default_rng(4)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-0.9, 0.9, (1, 2)).astype(np.float32)
            a = random.uniform(0.2, 0.5, (1, 2)).astype(np.float32)
            yield Episode(observation=np.concatenate([x, x]), action=a, reward=3 * a.sum(-1), terminated=True)

    return fill(tmp_path_factory.mktemp("narrow") / "store", ACTION, episodes())


@pytest.mark.parametrize(
    ("name", "steps", "values"),
    [
        ("td3_bc", 400, {"alpha": 0.2}),
        ("prdc", 400, {"alpha": 0.2}),
        ("rebrac", 400, {"actor_beta": 5.0}),
        ("iql", 600, {"weight_temp": 3.0}),
        ("awac", 600, {"lam": 0.3}),
        ("crr", 600, {"beta": 0.3}),
        ("bcq", 600, {**VAE, "n_action_samples": 10}),
        ("bear", 600, {**COOL, **BEAR, "initial_alpha": 20.0, "alpha_threshold": 0.05, "mmd_sigma": 1.0}),
        ("plas", 600, {**VAE, "warmup_steps": 300}),
        ("plas_with_perturbation", 600, {**VAE, "warmup_steps": 300}),
        ("cql", 400, {**COOL, "alpha_learning_rate": 0.0, "initial_alpha": 1.0}),
    ],
)
def test_it_stays_within_the_data_although_values_look_better_beyond(name, steps, values, narrow):
    learner = trained(name, narrow, steps, values)
    action = learner.policy(0)(STATES)
    assert action.min() > 0.1, f"{name}: {action.tolist()}"
    assert action.max() < 0.75, f"{name}: {action.tolist()}"


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_without_a_constraint_it_leaves_the_data(name, narrow):
    values = COOL if name == "sac" else {}
    assert trained(name, narrow, 400, values).policy(0)(STATES).min() > 0.8, "the problem above would be none"


# --- Discrete actions ---
@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    """A corridor of five cells, random steps left (0) and right (1), reward 1 at the right end: the best action is always right.

    The observation is (position, 1), the first steps of the goal's value must travel back through four bootstraps."""
    random = np.random.default_rng(1)

    def episodes():
        for _ in range(600):
            cell, cells, actions, rewards = 0, [0], [], []
            while cell < 4 and len(actions) < 12:
                action = int(random.integers(0, 2))
                cell = max(0, cell + (1 if action else -1))
                cells.append(cell)
                actions.append(action)
                rewards.append(float(cell == 4))
            observation = np.stack([np.array(cells) / 4, np.ones(len(cells))], -1).astype(np.float32)
            yield Episode(observation=observation, action=np.array(actions), reward=np.array(rewards, np.float32), terminated=cell == 4)

    return fill(tmp_path_factory.mktemp("corridor") / "store", Field("int64", low=0, high=1), episodes())


Q = {"target_update_interval": 25, "gamma": 0.9}
DISCRETE = {
    "dqn": Q,
    "double_dqn": Q,
    "discrete_cql": Q,
    "discrete_bcq": Q,
    "nfq": {"gamma": 0.9},
    "discrete_iql": {"tau": 0.05, "gamma": 0.9, "expectile": 0.95, "weight_temp": 20.0},
    "discrete_sac": {**Q, **COOL, "initial_temperature": 0.005},
}


def values_in(learner, name):
    """Return the learned value of walking right in each cell."""
    params = {n: v[0].float() for n, v in learner.state.params.items()}
    seen = CELLS if learner.scalers.observation["observation"] is None else learner.scalers.observation["observation"](CELLS)
    return get(name).value(params, learner.config, learner.nets, seen, torch.ones(4, dtype=torch.int64))[0].detach()


@pytest.mark.parametrize("name", DISCRETE)
def test_it_walks_to_the_reward_at_the_end_of_a_corridor(name, corridor):
    learner = trained(name, corridor, 700, DISCRETE[name])
    assert learner.policy(0)(CELLS).tolist() == [1, 1, 1, 1]
    if name != "discrete_cql":  # which holds values down on purpose
        torch.testing.assert_close(values_in(learner, name), PATH, rtol=0, atol=0.12)


@pytest.mark.parametrize("kind", ["qr", "iqn", "fqf"])
def test_distributional_values_reach_the_start_of_a_corridor(kind, corridor):
    learner = trained("dqn", corridor, 700, {**Q, "q_function.type": kind, "q_function.n_quantiles": 16})
    assert learner.policy(0)(CELLS).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(values_in(learner, "dqn"), PATH, rtol=0, atol=0.12)


# --- Imitation ---
@pytest.mark.parametrize("policy_type", ["deterministic", "stochastic", "likelihood"])
def test_bc_imitates_continuous_actions(policy_type, tmp_path):
    random = np.random.default_rng(2)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-0.9, 0.9, (1, 2)).astype(np.float32)
            yield Episode(observation=np.concatenate([x, x]), action=-x[:, ::-1].copy(), reward=np.zeros(1, np.float32), terminated=True)

    learner = trained("bc", fill(tmp_path / "store", ACTION, episodes()), 500, {"policy_type": policy_type})
    torch.testing.assert_close(learner.policy(0)(STATES), -STATES.flip(-1), rtol=0, atol=0.15)


def test_discrete_bc_imitates_discrete_actions(tmp_path):
    random = np.random.default_rng(3)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-1, 1, (1, 2)).astype(np.float32)
            action = np.array([int(x[0, 0] > 0) + int(x[0, 1] > 0)])
            yield Episode(observation=np.concatenate([x, x]), action=action, reward=np.zeros(1, np.float32), terminated=True)

    learner = trained("discrete_bc", fill(tmp_path / "store", Field("int64", low=0, high=2), episodes()), 400, {})
    assert learner.policy(0)(torch.tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])).tolist() == [2, 1, 0]


def test_discrete_bcq_never_takes_an_action_that_the_data_lacks(tmp_path):
    random = np.random.default_rng(5)

    def episodes():
        for _ in range(1000):
            x = random.uniform(-1, 1, (1, 2)).astype(np.float32)
            action = random.integers(0, 2, 1)
            yield Episode(observation=np.concatenate([x, x]), action=action, reward=-1 - np.float32(action), terminated=True)

    # The third action was never tried, and its value, never trained, is far above those of the others.
    store = fill(tmp_path / "store", Field("int64", low=0, high=2), episodes())
    assert trained("discrete_bcq", store, 300, {"beta": 0.01}).policy(0)(STATES).tolist() == [0, 0, 0, 0]
    assert trained("dqn", store, 300, {}).policy(0)(STATES).tolist() == [2, 2, 2, 2], "the problem would be none"


# --- Models and evaluations ---
def test_the_ensemble_learns_the_rewards_and_its_own_uncertainty(reaching):
    learner = trained("ensemble_dynamics", reaching, 600, {"n_ensembles": 2, **SCALED})
    params = {n: v[0] for n, v in learner.state.params.items()}
    random = torch.Generator().manual_seed(0)
    s = torch.rand(200, 2, generator=random) * 1.8 - 0.9
    a = torch.rand(200, 2, generator=random) * 2 - 1
    predicted = learner.nets.dynamics(params, s, a)
    reward = -0.2 * ((a - s) ** 2).sum(-1)
    for member in predicted.mean:
        assert (member[:, :2]).abs().max() < 0.1  # the change of the observation has the mean 0 ...
        assert ((member[:, 2] - reward) ** 2).mean() < 0.15 * reward.var()
    assert (torch.exp(predicted.log_std[..., :2]) - 0.1).abs().max() < 0.05  # ... and this deviation


def test_fqe_finds_the_values_of_the_evaluated_policy_not_of_the_data(corridor):
    right = trained("dqn", corridor, 700, Q)
    learner = trained("discrete_fqe", corridor, 700, Q, policy=right)
    torch.testing.assert_close(values_in(learner, "discrete_fqe"), PATH, rtol=0, atol=0.12)
    # The random walk of the data is worth less: so is a policy that always steps left.
    left = trained("discrete_bc", _leftward(corridor), 200, {})
    worse = trained("discrete_fqe", corridor, 700, Q, policy=left)
    torch.testing.assert_close(values_in(worse, "discrete_fqe"), torch.tensor([0.0, 0.0, 0.0, 1.0]), rtol=0, atol=0.12)


def test_fqe_of_a_continuous_policy(tmp_path):
    """Two steps with random actions, each rewarded by its first component; the policy always takes 0.5."""
    random = np.random.default_rng(6)
    steps = np.array([[0, 1], [1, 1], [2, 1]], np.float32)

    def episodes(fixed):
        for _ in range(600):
            a = np.full((2, 2), 0.5, np.float32) if fixed else random.uniform(-1, 1, (2, 2)).astype(np.float32)
            yield Episode(observation=steps, action=a, reward=a[:, 0], terminated=True)

    policy = trained("bc", fill(tmp_path / "policy", ACTION, episodes(True)), 200, {})
    learner = trained("fqe", fill(tmp_path / "data", ACTION, episodes(False)), 600, {**Q}, policy=policy)
    params = {n: v[0] for n, v in learner.state.params.items()}
    action = torch.tensor([[-0.5, 0.3], [0.4, -0.2]])
    for step, expected in ((0, action[:, 0] + 0.9 * 0.5), (1, action[:, 0])):
        found = get("fqe").value(params, learner.config, learner.nets, torch.from_numpy(steps[[step, step]]), action)[0].detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=0.12)


def _leftward(corridor):
    """Return the corridor's store with every action replaced by a step to the left."""
    episodes = (corridor.read_episode(number) for number in range(20))
    changed = (
        Episode(observation=e.observation, action=np.zeros_like(e.action), reward=e.reward, terminated=e.terminated) for e in episodes
    )
    return fill(corridor.path.parent / "left", Field("int64", low=0, high=1), changed)


# --- Chance ---
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_random_policies_have_the_configured_distribution(distribution, reaching):
    values = {} if distribution == "uniform" else {"distribution": "normal", "normal_std": 0.3}
    learner = offrld.train("random_policy", reaching, steps=1, config=values)
    seen = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1))
    algorithm, params = get("random_policy"), {n: v[0] for n, v in learner.state.params.items()}
    noise = torch.randn(4000, 2, generator=torch.Generator().manual_seed(2))
    for action in (learner.policy(0)(seen), algorithm.sample(params, learner.config, learner.nets, seen, noise)):
        assert action.mean(0).abs().max() < 0.05
        wanted = 1 / 3**0.5 if distribution == "uniform" else 0.3
        assert (action.std(0) - wanted).abs().max() < 0.03
        assert torch.corrcoef(action.T)[0, 1].abs() < 0.06
    assert action.abs().max() <= 1


def test_the_discrete_random_policy_takes_every_action_equally_often(discrete_store):
    learner = offrld.train("discrete_random_policy", discrete_store, steps=1)
    seen = torch.rand(6000, 3, generator=torch.Generator().manual_seed(1))
    share = torch.bincount(learner.policy(0)(seen), minlength=3) / 6000
    assert (share - 1 / 3).abs().max() < 0.03


def test_every_algorithm_is_tested_here_or_with_the_sequence_models():
    here = {*CONTINUOUS, *DISCRETE, "ensemble_dynamics"}
    for name in ("bc", "fqe", "random_policy"):
        here |= {name, f"discrete_{name}"}
    assert here | {"decision_transformer", "discrete_decision_transformer", "tacr"} == set(FROM_DATA)
