"""DDPG, TD3, TD3+BC, ReBRAC and PRDC against a plain computation of their updates (see `oracle`)."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, Follow, Move, Trace, absolute, choose, chosen_mean, net, replay, stop

kinds = pytest.mark.parametrize("kind", KINDS)
RATES = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.02, "tau": 0.1}


def ddpg_critic(p, x):
    a = np.tanh(net(x.t, "actor", x.next_observation))
    y = x.bellman(choose(x.critics(x.t, x.next_observation, a), "min"))
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def smoothed(x):
    c = x.config
    noise = np.clip(x.noise["target"] * c.target_smoothing_sigma, -c.target_smoothing_clip, c.target_smoothing_clip)
    return np.clip(np.tanh(net(x.t, "actor", x.next_observation)) + noise, -1, 1)


def td3_critic(p, x):
    y = x.bellman(choose(x.critics(x.t, x.next_observation, smoothed(x)), "min"))
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def rebrac_critic(p, x):
    a = smoothed(x)
    penalty = np.array([sum((a[b, j] - x.next_action[b, j]) ** 2 for j in range(a.shape[1])) for b in range(len(a))])
    y = x.bellman(choose(x.critics(x.t, x.next_observation, a), "min") - x.config.critic_beta * penalty[:, None])
    return x.loss_of(x.critics(p, x.observation, x.action), y)


def climb(p, x):
    return -np.mean(x.critics(x.p, x.observation, np.tanh(net(p, "actor", x.observation)), 1)[0].mean)


def td3_bc_actor(p, x, wanted=None):
    a = np.tanh(net(p, "actor", x.observation))
    q = x.critics(x.p, x.observation, a, 1)[0].mean
    lam = x.config.alpha / stop(np.mean(absolute(q)))
    return -lam * np.mean(q) + np.mean((a - (x.action if wanted is None else wanted)) ** 2)


def prdc_actor(p, x):
    a, beta = np.tanh(net(x.p, "actor", x.observation)), x.config.beta
    states, actions = x.dataset
    nearest = np.zeros_like(a)
    for b in range(len(a)):
        distances = [beta**2 * np.sum((s - x.observation[b]) ** 2) + np.sum((c - a[b]) ** 2) for s, c in zip(states, actions, strict=True)]
        nearest[b] = actions[int(np.argmin(distances))]
    return td3_bc_actor(p, x, nearest)


def rebrac_actor(p, x):
    a = np.tanh(net(p, "actor", x.observation))
    q = chosen_mean(x.critics(x.p, x.observation, a), "min")
    lam = 1 / stop(np.mean(absolute(q)))
    return np.mean(-lam * q + x.config.actor_beta * ((x.action - a) ** 2).sum(-1))


def td3_plan(critic, actor, interval):
    def plan(k):
        first = [Move("critic", ("critic",), 0.02, critic)]
        if k % interval:
            return first
        return [*first, Move("actor", ("actor",), 0.01, actor), Follow({"critic": 0.1, "actor": 0.1})]

    return plan


@kinds
def test_ddpg(kind, continuous_store):
    trace = Trace("ddpg", continuous_store, {**RATES, **KINDS[kind], "n_critics": 2}, 3)
    replay(trace, td3_plan(ddpg_critic, climb, 1), ("actor", "critic"))


@kinds
@pytest.mark.parametrize(
    ("name", "critic", "actor", "values"),
    [
        ("td3", td3_critic, climb, {}),
        ("td3_bc", td3_critic, td3_bc_actor, {}),
        ("rebrac", rebrac_critic, rebrac_actor, {"critic_beta": 0.3, "actor_beta": 0.2}),
    ],
)
def test_td3_and_its_relatives_move_policy_and_targets_every_interval(name, critic, actor, values, kind, continuous_store):
    # A wide noise, so that its clip and that of the action both act.
    wide = {"target_smoothing_sigma": 0.5, "target_smoothing_clip": 0.4}
    trace = Trace(name, continuous_store, {**RATES, **wide, **KINDS[kind], **values, "update_actor_interval": 3}, 4)
    noise = np.abs(0.5 * trace.seen[0][0].batch["noise"]["target"])
    assert (noise > 0.4).any()
    assert (noise < 0.4).any()
    replay(trace, td3_plan(critic, actor, 3), ("actor", "critic"))


def test_prdc_keeps_the_policy_near_its_nearest_neighbour(continuous_store):
    mean, std = np.array([0.2, 3.1, 0.05]), np.array([1.1, 4.9, 0.12])
    scaler = {"observation_scaler": "standard", "observation_scaler.mean": mean.tolist(), "observation_scaler.std": std.tolist()}
    trace = Trace("prdc", continuous_store, {**RATES, **scaler, "beta": 0.7, "update_actor_interval": 2}, 3)
    episodes = [continuous_store.read_episode(number) for number in range(len(continuous_store))]
    # The last step of a truncated episode without its final observation starts no transition.
    kept = [len(e.reward) - (len(e.observation) == len(e.reward) and not e.terminated) for e in episodes]
    states = np.concatenate([e.observation[:n] for e, n in zip(episodes, kept, strict=True)])
    actions = np.concatenate([e.action[:n] for e, n in zip(episodes, kept, strict=True)])

    def actor(p, x):
        x.dataset = (states - mean) / (std + 1e-3), actions / 2.0
        return prdc_actor(p, x)

    replay(trace, td3_plan(td3_critic, actor, 2), ("actor", "critic"))
