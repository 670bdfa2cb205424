"""The learner: what may and what must not affect the result of a run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from cheap_settings import FROM_DATA, cheap_learner

from offrl.errors import InvalidInput, OffrlError
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld import settings
from offrld.algos import ALGORITHMS
from offrld.engine import CheckpointCorrupt, Learner
from offrld.engine.updates import checkpoint

ALL = list(FROM_DATA.values())
names = pytest.mark.parametrize("algorithm", ALL, ids=lambda a: a.name)


def state_of(learner):
    return {name: value.clone() for name, value in learner.state.tensors().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@names
def test_resuming_gives_the_same_bits_as_training_through(algorithm, store_for, tmp_path):
    store = store_for(algorithm)
    through = cheap_learner(algorithm, store, seeds=[0, 3])
    through.run(8)
    expected = through.metrics()
    first = cheap_learner(algorithm, store, seeds=[0, 3])
    first.run(4)
    first.save(tmp_path / "half.safetensors")
    second = cheap_learner(algorithm, EpisodeStore.open(store.path), seeds=[0, 3])
    second.restore(tmp_path / "half.safetensors")
    assert second.step == 4
    second.run(1)
    second.run(3)
    assert_equal(state_of(second), state_of(through))
    assert second.metrics() == expected


@names
def test_several_seeds_train_as_each_would_alone(algorithm, store_for):
    store, seeds = store_for(algorithm), [5, 0, 9]
    alone = [cheap_learner(algorithm, store, seeds=[seed], dtype=torch.float64) for seed in seeds]
    for learner in alone:
        learner.run(4)
    expected = [(state_of(learner), learner.metrics()) for learner in alone]
    for stacked in (False, True):
        together = cheap_learner(algorithm, store, seeds=seeds, dtype=torch.float64, stacked=stacked)
        together.run(4)
        state, metrics = together.state.tensors(), together.metrics()
        for position, (seed, (mine, means)) in enumerate(zip(seeds, expected, strict=True)):
            for name, value in mine.items():
                found = state[name] if value.dim() == 0 else state[name][position]
                torch.testing.assert_close(found, value if value.dim() == 0 else value[0], rtol=1e-9, atol=1e-12)
            for name, values in means.items():
                assert metrics[name][seed] == pytest.approx(values[seed], rel=1e-9)


def test_seeds_differ_in_initialisation_batches_and_noise(continuous_store):
    learner = cheap_learner(ALGORITHMS["td3_bc"], continuous_store, seeds=[0, 1])
    assert not torch.equal(learner.state.params["actor.encoder.0.weight"][0], learner.state.params["actor.encoder.0.weight"][1])
    one, two = learner.trainer.batches(0)
    assert not torch.equal(one.observation, two.observation)
    assert not torch.equal(one.noise["target"], two.noise["target"])


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("name", ["td3_bc", "discrete_cql"])
def test_the_compiled_runner_agrees_with_eager(name, store_for, tmp_path):
    algorithm = ALGORITHMS[name]
    eager = cheap_learner(algorithm, store_for(algorithm), dtype=torch.float64, runner="eager")
    compiled = cheap_learner(algorithm, store_for(algorithm), dtype=torch.float64, runner="compile", cache_dir=tmp_path)
    assert compiled.describe_run()["runner"] == "compile"
    eager.run(4)
    compiled.run(4)
    for key, value in state_of(eager).items():
        torch.testing.assert_close(state_of(compiled)[key], value, rtol=1e-9, atol=1e-12)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(continuous_store, tmp_path):
    learner = cheap_learner(ALGORITHMS["bc"], continuous_store)
    learner.run(2)
    path = tmp_path / "c.safetensors"
    learner.save(path)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match="checksum"):
        learner.restore(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointCorrupt):
        learner.restore(path)
    assert learner.step == 2


def test_a_checkpoint_of_another_config_is_refused(continuous_store, tmp_path):
    algorithm = ALGORITHMS["bc"]
    cheap_learner(algorithm, continuous_store).save(tmp_path / "c.safetensors")
    other = Learner.create(algorithm, algorithm.configure({"batch_size": 17}), continuous_store)
    with pytest.raises(OffrlError, match=r"has batch_size .*, this run 17"):
        other.restore(tmp_path / "c.safetensors")


def test_the_policy_gives_actions_in_the_environments_units_within_bounds(continuous_store):
    learner = cheap_learner(ALGORITHMS["td3_bc"], continuous_store)
    with torch.no_grad():
        learner.state.params["actor.head.bias"] += 100.0  # tanh saturates
    observation = torch.randn(7, 3)
    action = learner.policy(0)(observation)
    assert action.dtype == torch.float32
    assert torch.equal(action, torch.full((7, 2), 2.0))


def test_bounds_of_the_environment_take_precedence(continuous_store):
    algorithm = ALGORITHMS["bc"]
    learner = cheap_learner(algorithm, continuous_store, bounds=(np.array([-4.0]), np.array([4.0])), env_id="Wide-v0")
    assert learner.space["low"] == [-4.0, -4.0]
    assert learner.space["source"] == "env:Wide-v0"


def test_the_wrong_kind_of_actions_is_refused(continuous_store, discrete_store):
    with pytest.raises(InvalidInput, match="'dqn' learns discrete actions, the dataset has continuous ones"):
        cheap_learner(ALGORITHMS["dqn"], continuous_store)
    with pytest.raises(InvalidInput, match="'iql' learns continuous actions"):
        cheap_learner(ALGORITHMS["iql"], discrete_store)


def test_held_out_episodes_are_never_trained_on(continuous_store):
    learner = cheap_learner(ALGORITHMS["bc"], continuous_store, holdout=0.25)
    assert len(learner.holdout) == 3
    held_out = set(learner.holdout.tolist())
    table = continuous_store.episode_table
    seen = set()
    for k in range(50):
        rows = learner.trainer.feeds.several_steps[0].source.samples(k).batch.index.numpy()
        seen |= {int(np.searchsorted(table["first_row"], row, side="right")) - 1 for row in rows}
    assert seen == set(range(12)) - held_out
    assert set(learner.validate()) == {"validation_loss"}
    assert cheap_learner(ALGORITHMS["bc"], continuous_store).validate() == {}


def test_a_stage_of_single_steps_is_validated_on_single_steps(continuous_store):
    config = {"n_steps": 3, "dynamics_steps": 2, "rollout_interval": 1}
    learner = cheap_learner(ALGORITHMS["mopo"], continuous_store, config, holdout=0.25)
    single = cheap_learner(ALGORITHMS["mopo"], continuous_store, {**config, "n_steps": 1}, holdout=0.25)
    assert set(learner.validate()) == {"validation_dynamics_loss", "validation_dynamics_error"}
    assert learner.validate() == single.validate()
    learner.run(3)
    assert "validation_critic_loss" in learner.validate()


def test_a_holdout_that_leaves_nothing_to_train_on_is_refused(continuous_store):
    with pytest.raises(InvalidInput, match=r"0\.99 of 12 episodes"):
        cheap_learner(ALGORITHMS["bc"], continuous_store, holdout=0.99)


def test_dict_observations_are_joined_for_the_networks_and_named_in_the_policy(tmp_path):
    random = np.random.default_rng(0)
    fields = {"arm": Field("float64", (2,)), "load": Field("float32")}
    store = EpisodeStore.create(tmp_path / "store", Schema(observation=fields, action=Field("float32", (1,), low=-1, high=1)))
    with store.writer() as writer:
        for _ in range(5):
            observation = {"arm": random.normal(size=(11, 2)) * 100, "load": random.normal(size=11).astype(np.float32)}
            actions = random.uniform(-1, 1, (10, 1)).astype(np.float32)
            writer.append(Episode(observation=observation, action=actions, reward=np.ones(10, np.float32), terminated=True))
    algorithm = ALGORITHMS["td3_bc"]
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 8, "observation_scaler": "standard"}), store)
    learner.run(2)
    assert learner.space["observation"] == {"arm": {"dtype": "float64", "shape": [2]}, "load": {"dtype": "float32", "shape": []}}
    batch = learner.trainer.batches(2)[0]
    assert batch.observation.shape == (8, 3)
    assert batch.observation.abs().max() < 5  # standardised, the arm's hundreds too
    action = learner.policy(0)(arm=torch.zeros(4, 2, dtype=torch.float64), load=torch.zeros(4))
    assert action.shape == (4, 1)


def test_a_checkpoint_from_before_a_setting_existed_continues_with_its_default_only(continuous_store, tmp_path):
    algorithm = ALGORITHMS["bc"]
    learner = cheap_learner(algorithm, continuous_store)
    learner.run(2)
    learner.save(tmp_path / "now.safetensors")
    tensors, description = checkpoint.read(tmp_path / "now.safetensors")
    setting = next(name for name in description["config"] if name.endswith("optimizer.amsgrad"))
    del description["config"][setting]  # as if it had come later
    checkpoint.write(tmp_path / "before.safetensors", tensors, description)
    same = cheap_learner(algorithm, continuous_store)
    same.restore(tmp_path / "before.safetensors")
    assert same.step == 2
    other = Learner.create(algorithm, algorithm.configure({**settings.as_flat(learner.config), setting: True}), continuous_store)
    with pytest.raises(OffrlError, match=f"has {setting} False, this run True") as caught:
        other.restore(tmp_path / "before.safetensors")
    assert "written by offrl" in caught.value.hint
    description["config"]["no_longer"] = 3
    checkpoint.write(tmp_path / "later.safetensors", tensors, description)
    with pytest.raises(OffrlError, match="has a setting no_longer"):
        same.restore(tmp_path / "later.safetensors")
