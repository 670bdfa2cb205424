"""Runs read from a checkpoint alone, without dataset or learner."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput, Unknown
from offrld import build
from offrld.algos import ALGORITHMS, get, td3_bc
from offrld.engine import Learner, Loaded, setting

CHEAP = {"batch_size": 16}
SOME = [ALGORITHMS[name] for name in ("td3_bc", "iql", "plas", "bc", "discrete_bcq")]
names = pytest.mark.parametrize("algorithm", SOME, ids=lambda a: a.name)


def trained(algorithm, store, config=CHEAP, updates=3, **options):
    learner = Learner.create(algorithm, algorithm.configure(config), store, **options)
    learner.run(updates)
    return learner


def observations(store):
    return torch.from_numpy(np.array(store.column("observation")[:9]))


@names
def test_a_checkpoint_alone_suffices_to_act(algorithm, store_for, tmp_path):
    learner = trained(algorithm, store_for(algorithm), seeds=[4, 2])
    learner.save(tmp_path / "c.safetensors")
    for seed in (4, 2):
        loaded = Loaded.read(tmp_path / "c.safetensors", get, seed)
        assert (loaded.seed, loaded.step, loaded.algorithm, loaded.config) == (seed, 3, algorithm, learner.config)
        seen = observations(learner.store)
        assert torch.equal(loaded.policy()(seen), learner.policy(seed)(seen))
        mine = learner.state.of_seed(learner.seeds.index(seed), {})
        assert all(torch.equal(loaded.params[name], value) for name, value in mine.params.items())
        assert all(torch.equal(loaded.target[name], value) for name, value in mine.target.items())


def settings_of(**values):
    return {**CHEAP, **values}


@pytest.mark.parametrize(
    "config",
    [
        settings_of(observation_scaler="min_max", reward_scaler="standard"),
        settings_of(observation_scaler="none", **{"reward_scaler.type": "clip", "reward_scaler.high": 0.5}),
        settings_of(observation_scaler="standard", frame_stack=3, reward_scaler="return"),
    ],
)
def test_scalers_are_rebuilt_without_their_data(config, continuous_store, tmp_path):
    learner = trained(ALGORITHMS["td3_bc"], continuous_store, config, dtype=torch.float64)
    learner.save(tmp_path / "c.safetensors")
    mine, theirs = Loaded.read(tmp_path / "c.safetensors", get).scalers, learner.scalers
    assert {name: value.tolist() for name, value in mine.tensors().items()} == {n: v.tolist() for n, v in theirs.tensors().items()}
    rewards = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.equal(mine.reward(rewards), theirs.reward(rewards))
    x = torch.randn(5, 3 * config.get("frame_stack", 1), dtype=torch.float64)
    if mine.observation["observation"] is not None:
        assert torch.equal(mine.observation["observation"](x), theirs.observation["observation"](x))


def test_a_run_folder_stands_for_its_newest_checkpoint(continuous_store, tmp_path):
    learner = trained(ALGORITHMS["bc"], continuous_store)
    for _ in range(2):
        learner.save(tmp_path / "checkpoints" / f"{learner.step:012d}.safetensors")
        learner.run(1)
    assert Loaded.read(tmp_path, get).step == 4
    assert Loaded.read(tmp_path / "checkpoints" / "000000000003.safetensors", get).step == 3
    with pytest.raises(Unknown, match="seed 7 was not trained"):
        Loaded.read(tmp_path, get, 7)
    with pytest.raises(InvalidInput, match="no checkpoint"):
        Loaded.read(tmp_path / "nothing", get)


def test_a_copy_of_a_learner_is_not_trained_further(continuous_store):
    learner = trained(ALGORITHMS["td3_bc"], continuous_store)
    copy, seen = Loaded.of(learner), observations(continuous_store)
    before = copy.policy()(seen)
    learner.run(20)
    assert torch.equal(copy.policy()(seen), before)
    assert not torch.equal(Loaded.of(learner).policy()(seen), before)


@dataclass(frozen=True)
class Follows(td3_bc.Config):
    policy: str | None = setting(None, "the job whose policy is taken")


def test_an_input_is_what_another_run_learned(continuous_store, discrete_store, tmp_path):
    source = trained(ALGORITHMS["bc"], continuous_store)
    source.save(tmp_path / "bc.safetensors")
    seen = []
    algorithm = replace(
        ALGORITHMS["td3_bc"],
        name="follows",
        config=Follows(),
        inputs={"policy": "policy"},
        prepare=lambda dataset, config: seen.append(dataset.inputs) or {},
    )

    def made(config=None, **options):
        return build(algorithm, continuous_store, config={**CHEAP, **(config or {})}, **options)

    x = observations(continuous_store)
    for learner in (
        made(inputs={"policy": source}),
        made(inputs={"policy": Loaded.of(source)}),
        made(inputs={"policy": Loaded.read(tmp_path / "bc.safetensors", get)}),
        made({"policy": str(tmp_path / "bc.safetensors")}),
    ):
        assert torch.equal(learner.inputs["policy"].policy()(x), source.policy(0)(x))
        assert seen.pop(0) is learner.inputs
    assert made().inputs == {}

    with pytest.raises(Unknown, match="has no input 'dynamics'"):
        made(inputs={"dynamics": source})
    with pytest.raises(InvalidInput, match="3 discrete actions, the dataset has 2 dimensions"):
        made(inputs={"policy": trained(ALGORITHMS["dqn"], discrete_store)})
    other = replace(algorithm, inputs={"policy": "iql"})
    with pytest.raises(InvalidInput, match="takes a run of iql, a learner of bc is of bc"):
        Learner.create(other, other.configure(CHEAP), continuous_store, inputs={"policy": source})
    with pytest.raises(InvalidInput, match="takes a policy"):
        made(inputs={"policy": replace(Loaded.of(source), algorithm=replace(ALGORITHMS["bc"], acts=False))})


@pytest.mark.parametrize("name", ["folder", "n" * 300, "file/below"])
def test_a_checkpoint_that_cannot_be_written_is_an_error_of_one_line(continuous_store, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    learner = build(ALGORITHMS["bc"], continuous_store)
    with pytest.raises(InvalidInput, match="cannot write") as caught:
        learner.save(tmp_path / name)
    assert caught.value.hint and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"] and not list((tmp_path / "folder").iterdir())
