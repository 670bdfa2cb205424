"""Online training: when it updates and on which data, which algorithms support it, and the dataset that it leaves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from cheap_settings import cheap_settings
from collect_envs import Counting

import offrld
from offrl.errors import EnvironmentFailed, InvalidInput, StoreNotFound, Unknown
from offrl_store import EpisodeStore, check
from offrld.algos import get, names
from offrld.collect import ConstantEpsilonGreedy, collect
from offrld.collect.online import OnlineTraining, evaluate, refusal


class Choices(Counting):
    action_space = gymnasium.spaces.Discrete(3)


def learner_for(name: str, env, **config):
    return offrld.build(name, offrld.Shapes.of_env(env), config=cheap_settings(get(name), {"batch_size": 8, **config}))


ONLINE = [name for name in names() if not refusal(get(name)) and not get(name).plays]  # what plays: tests/algos/test_ppo.py


def test_the_off_policy_algorithms_can_and_the_others_say_why_not():
    assert {
        "sac",
        "td3",
        "ddpg",
        "iql",
        "cql",
        "cal_ql",
        "awac",
        "td3_bc",
        "rebrac",
        "edac",
        "crr",
        "dqn",
        "double_dqn",
        "discrete_sac",
        "discrete_cql",
        "nfq",
        "discrete_bcq",
    } <= set(ONLINE)
    reasons = {
        "bc": "would imitate its own steps",
        "decision_transformer": "whole episodes",
        "prdc": "its dataset as a whole",
        "mopo": "its dataset as a whole",
        "fqe": "learns no policy",
    }
    for name, reason in reasons.items():
        assert reason in refusal(get(name))
    learner = learner_for("bc", Counting())
    with pytest.raises(InvalidInput, match="bc cannot be trained online"):
        learner.fit_online(Counting(), steps=10)


@pytest.mark.parametrize("name", ONLINE)
def test_every_one_of_them_learns_from_what_it_gathers(name):
    env = Choices() if get(name).actions == "discrete" else Counting()
    # TD3+BC standardises by default, for which an environment gives no numbers.
    learner = learner_for(name, env, **({"observation_scaler.type": "none"} if name == "td3_bc" else {}))
    before = {key: value.clone() for key, value in learner.state.params.items()}
    [(_, metrics)] = learner.fit_online(env, steps=230, random_steps=200, updates=1, explorer=ConstantEpsilonGreedy(0.1))
    assert learner.step == 31  # from the first commit on, at step 200
    assert any((learner.state.params[key] != value).any() for key, value in before.items())
    assert all(np.isfinite(value) for values in metrics.values() for value in values.values())
    assert 6 <= metrics["rollout_return"][0] <= 15  # sums of 1..3, 1..4 and 1..5


def test_updates_come_when_they_are_due(tmp_path):
    learner, seen = learner_for("sac", Counting()), []
    learner.fit_online(
        Counting(),
        tmp_path / "store",
        steps=300,
        steps_per_epoch=100,
        random_steps=50,
        update_start=240,
        update_interval=10,
        updates=3,
        callback=lambda _, epoch, step: seen.append((step, learner.step)),
    )
    made = dict(seen)
    assert made[240] == 0 and made[249] == 0 and made[250] == 3 and made[259] == 3 and made[300] == 18
    store = EpisodeStore.open(tmp_path / "store")
    assert store.step_count == 300 and check(store.path) == []
    told = [store.episode_metadata(number)["random_share"] for number in range(len(store))]
    assert told[:10] == [1.0] * 10 and told[-1] == 0.0  # the first 50 steps are uniform


def test_no_update_before_there_is_a_batch():
    learner = learner_for("sac", Counting(), batch_size=250)
    learner.fit_online(Counting(), steps=300, steps_per_epoch=300)
    assert learner.step == 0
    learner.fit_online(Counting(), steps=500, steps_per_epoch=500)
    assert learner.step == 101  # the first 400 steps are there after step 400: updates at the steps 400 to 500


def test_time_limits_are_no_terminals(tmp_path):
    learner = learner_for("sac", Counting())
    learner.fit_online(gymnasium.wrappers.TimeLimit(Counting((9,)), 4), tmp_path / "store", steps=40, steps_per_epoch=40)
    store = EpisodeStore.open(tmp_path / "store")
    assert [(e.steps, e.terminated) for e in store.episodes] == [(4, False)] * 10
    assert (store.transitions(64, seed=0).sample().terminal == 0).all()


def test_an_offline_dataset_is_mixed_in_with_its_share(tmp_path):
    offline = collect(Counting((7,)), steps=70, into=tmp_path / "offline")
    learner = learner_for("sac", Counting())
    training = OnlineTraining(learner, Counting(), tmp_path / "online", offline=offline, offline_share=0.25)
    training.advance(210)
    assert training._sampler.counts == (6, 2) and learner.step > 0
    training.close()
    with pytest.raises(InvalidInput, match="has other fields"):
        OnlineTraining(learner, Counting(), offline=collect("Pendulum-v1", steps=10, into=tmp_path / "other"))


def test_a_learner_is_built_from_an_environment_or_its_id(tmp_path):
    env = gymnasium.make("CartPole-v1")
    for learner in (offrld.build("dqn", env=env), offrld.build("dqn", env), offrld.build("dqn", env="CartPole-v1")):
        assert learner.predict(np.zeros((2, 4), np.float32)).shape == (2,)
    with pytest.raises(Unknown, match="CartPol-v1") as unknown:
        offrld.build("dqn", env="CartPol-v1")
    assert "CartPole-v1" in unknown.value.hint
    with pytest.raises(StoreNotFound) as missing:
        offrld.build("dqn", "CartPole-v1")
    assert "env=" in missing.value.hint
    for given in ({}, {"source": tmp_path, "env": env}):
        with pytest.raises(InvalidInput, match="pass one of them"):
            offrld.build("dqn", **given)
    with pytest.raises(InvalidInput, match="sac"):
        offrld.build("sac", env=env)


def test_a_learner_goes_on_from_offline_training(tmp_path):
    store = collect("Pendulum-v1", steps=400, into=tmp_path / "store")
    learner = offrld.build("iql", store, config=cheap_settings(get("iql"), {"batch_size": 8}))
    learner.fit(20)
    before = {name: value.clone() for name, value in learner.state.params.items()}
    learner.fit_online("Pendulum-v1", store, steps=210, update_interval=10)
    store.refresh()
    assert learner.step == 41 and store.step_count == 610
    moved = max(float((learner.state.params[name] - value).abs().max()) for name, value in before.items())
    assert 0 < moved < 0.5


def test_a_saved_learner_goes_on_online(tmp_path):
    """From a checkpoint alone, with its networks, optimizers and step; the collected episodes are a dataset."""
    learner = learner_for("dqn", Choices())
    learner.fit_online(Choices(), steps=210)
    learner.save(tmp_path / "checkpoint.safetensors")
    again = offrld.load(tmp_path / "checkpoint.safetensors")
    assert again.step == learner.step == 11
    before = {key: value.clone() for key, value in again.state.params.items()}
    again.fit_online(Choices(), tmp_path / "store", steps=210)
    assert again.step == 22 and any((again.state.params[key] != value).any() for key, value in before.items())
    assert EpisodeStore.open(tmp_path / "store").step_count == 210


def test_an_environment_that_raises_ends_training_with_its_data_kept(tmp_path):
    with pytest.raises(EnvironmentFailed, match="at step 253"):
        learner_for("sac", Counting()).fit_online(Counting(fail_at=254), tmp_path / "store", steps=1000)
    assert EpisodeStore.open(tmp_path / "store").step_count == 253


def test_a_run_goes_on_from_its_state(tmp_path):
    learner = learner_for("sac", Counting())
    training = OnlineTraining(learner, Counting(), tmp_path / "store", explorer=ConstantEpsilonGreedy(0.5))
    training.advance(250)
    learner.save(tmp_path / "checkpoint.safetensors", {"online": training.state_dict()})
    training.close()
    again = learner_for("sac", Counting())
    again.restore(tmp_path / "checkpoint.safetensors")
    from offrld.engine.updates import checkpoint

    _, told = checkpoint.read(tmp_path / "checkpoint.safetensors")
    resumed = OnlineTraining(again, Counting(), tmp_path / "store", explorer=ConstantEpsilonGreedy(0.5))
    resumed.load_state_dict(told["online"])
    assert (resumed.step, resumed.collector.behaviour.step, again.step) == (250, 250, learner.step)
    assert resumed.due_until(300) == 50
    resumed.advance(50)
    resumed.close()
    assert again.step == learner.step + 50 and EpisodeStore.open(tmp_path / "store").step_count == 300


def test_what_is_made_durable_in_between_changes_no_update(tmp_path):
    """A checkpoint may commit at any time: the updates, and the data that they see, stay the same."""
    found = []
    for name, blocks in (("whole", [450]), ("cut", [7, 123, 1, 60, 89, 100, 70])):
        learner = learner_for("sac", Counting())
        training = OnlineTraining(learner, Counting(), tmp_path / name, update_interval=5, update_start=10)
        for block in blocks:
            training.advance(block)
            if name == "cut":
                training.collector.sync()
        found.append((learner.step, {key: value.clone() for key, value in learner.state.params.items()}, training.take_metrics()))
        training.close()
    (steps, whole, returns), (others, cut, same) = found
    assert steps == others == 51 and returns["rollout_return"] == same["rollout_return"]
    assert all((whole[key] == cut[key]).all() for key in whole)


@pytest.mark.parametrize("at", [0, 130, 250, 395])
@pytest.mark.parametrize("options", [{}, {"update_interval": 7, "updates": 2}, {"update_start": 320}])
def test_a_killed_run_makes_up_for_as_many_updates_as_it_lost(tmp_path, at, options):
    """Killed at step 403 with an earlier checkpoint: from the store it makes as many updates as a run that was not killed."""
    config = {"batch_size": 220}  # more than what the first commit takes in
    whole = learner_for("sac", Counting(), **config)
    whole.fit_online(Counting(), tmp_path / "whole", steps=600, steps_per_epoch=600, **options)
    learner = learner_for("sac", Counting(), **config)
    training = OnlineTraining(learner, Counting(), tmp_path / "store", **options)
    training.advance(at)
    learner.save(tmp_path / "checkpoint.safetensors", {"online": training.state_dict()})
    state = training.state_dict()
    training.advance(403 - at)
    training.close()
    again = learner_for("sac", Counting(), **config)
    again.restore(tmp_path / "checkpoint.safetensors")
    resumed = OnlineTraining(again, Counting(), tmp_path / "store", **options)
    resumed.load_state_dict(state)
    resumed.update(resumed.due_until(403))
    assert again.step == learner.step
    resumed.go_on_at(403)
    resumed.advance(600 - 403)
    resumed.close()
    assert again.step == whole.step > 0 and EpisodeStore.open(tmp_path / "store").step_count == 600


def test_frames_are_stacked_in_acting_and_in_training(tmp_path):
    learner = learner_for("dqn", Choices(), frame_stack=2)
    seen = []
    predict = learner.sample
    learner.sample = lambda observations, **options: seen.append(np.array(observations)) or predict(observations, **options)
    learner.fit_online(Choices((5,)), tmp_path / "store", steps=220, steps_per_epoch=220)
    stacks = np.concatenate(seen)  # [220, 2 * 2]
    assert learner.step > 0 and EpisodeStore.open(tmp_path / "store").episodes[0].observation.shape == (6, 2)
    np.testing.assert_array_equal(stacks[1:5, :2], stacks[:4, 2:])
    assert (stacks[5, :2] == 0).all()


def test_evaluation_is_greedy_or_nearly(tmp_path):
    learner = learner_for("dqn", gymnasium.make("CartPole-v1"))
    env = gymnasium.make("CartPole-v1")
    assert evaluate(learner, env, 3) == evaluate(learner, env, 3) != evaluate(learner, env, 3, epsilon=0.9)
    [(_, metrics)] = learner.fit_online("CartPole-v1", steps=30, eval_env="CartPole-v1", eval_episodes=3, save_to=tmp_path / "run")
    assert metrics["return_mean"][0] == pytest.approx(np.mean(evaluate(learner, env, 3)))
    assert (learner.step, evaluate(learner, env, 5)[:3]) == (0, evaluate(learner, env, 3))  # each episode has its own seed
    [(_, metrics)] = learner.fit_online("CartPole-v1", steps=30, eval_env="CartPole-v1", eval_episodes=3, eval_epsilon=0.9)
    assert metrics["return_mean"][0] == pytest.approx(np.mean(evaluate(learner, env, 3, epsilon=0.9)))
    assert (tmp_path / "run" / "seed-0" / "metrics" / "return_mean.csv").exists()


def test_environment_and_learner_have_to_fit():
    learner = learner_for("sac", Counting())
    with pytest.raises(InvalidInput, match="CartPole-v1: observation"):
        learner.fit_online("CartPole-v1", steps=10)
    with pytest.raises(InvalidInput, match="online training takes one seed"):
        offrld.build("sac", offrld.Shapes.of_env(Counting()), seeds=[0, 1]).fit_online(Counting(), steps=10)
    with pytest.raises(InvalidInput, match="update_interval is 0"):
        learner.fit_online(Counting(), steps=10, update_interval=0)
