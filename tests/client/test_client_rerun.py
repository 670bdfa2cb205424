"""A job is repeated from what its run folder says, to the same bits, although much has changed since."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from offrl.errors import InvalidInput, Unknown


def arrays(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    ends = np.zeros(200, bool)
    ends[49::50] = True
    actions = random.uniform(-1, 1, (200, 2)).astype(np.float32)
    actions[0], actions[1] = -1, 1  # what is appended has to lie within
    return {
        "observations": random.normal(size=(200, 3)).astype(np.float32),
        "actions": actions,
        "rewards": random.normal(size=200).astype(np.float32),
        "terminals": np.zeros(200, bool),
        "timeouts": ends,
    }


def checkpoint(daemon, job: str, step: int) -> dict[str, bytes]:
    tensors = load_file(daemon.state_dir / "jobs" / job / "checkpoints" / f"{step:012d}.safetensors")
    return {name: value.tobytes() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def first(client, daemon):
    """A job with settings of its own, that starts from another one; and then the dataset has grown."""
    client.datasets.add("rerun-data", arrays(0))
    origin = client.submit("iql", dataset="rerun-data", steps=10, seeds=[3, 5], config={"batch_size": 16}, runner="eager", device="cpu")
    job = client.submit(
        "iql",
        dataset="rerun-data",
        steps=40,
        seeds=[3, 5],
        config={"batch_size": 16, "reward_scaler": "standard"},
        validation=0.25,
        start=origin,
        device="cpu",
        runner="eager",
    )
    job.wait(100)
    client.datasets.append("rerun-data", arrays(1))
    return origin, job


def test_a_rerun_has_the_same_bits_although_the_dataset_has_grown_and_its_start_is_gone(first, client, daemon, offrl_cli):
    origin, job = first
    origin.rm()
    told = offrl_cli("rerun", job.id, "--json")
    assert told.status == 0, told.err
    again = client.job(told.json["job"])
    info = again.wait(100)
    assert info.rerun_of == job.id
    assert info.snapshot == job.info().snapshot != client.datasets.show("rerun-data").snapshot
    assert checkpoint(daemon, again.id, 40) == checkpoint(daemon, job.id, 40)
    for seed in (3, 5):
        files = [daemon.state_dir / f"jobs/{each.id}/seed-{seed}/metrics" for each in (job, again)]
        assert {path.name: path.read_text() for path in files[0].iterdir()} == {path.name: path.read_text() for path in files[1].iterdir()}

    # A job as it would be submitted now is another one.
    anew = client.submit("iql", dataset="rerun-data", steps=40, seeds=[3, 5], config={"batch_size": 16}, device="cpu", runner="eager")
    anew.wait(100)
    assert checkpoint(daemon, anew.id, 40) != checkpoint(daemon, job.id, 40)


def test_a_rerun_is_of_what_was_resolved_and_its_key_names_one_job(first, client, daemon):
    _, job = first
    again = client.rerun(job, key="repeat")
    assert client.rerun(job, key="repeat").id == again.id
    spec = again.info().spec
    assert spec["config"] == json.loads((daemon.state_dir / "jobs" / job.id / "config.json").read_text())
    assert (spec["preset"], spec["runner"], spec["seeds"]) == (None, "eager", [3, 5])
    twice = client.rerun(again)  # not begun, or just: a rerun of it is the same again
    twice.wait(100)
    assert checkpoint(daemon, twice.id, 40) == checkpoint(daemon, job.id, 40)


def test_what_cannot_be_repeated_says_why(first, client, offrl_cli, tmp_path):
    _, job = first
    export = client.jobs("import")[0]
    with pytest.raises(InvalidInput, match="only a train or train-online job can be repeated"):
        client.rerun(export)
    with pytest.raises(Unknown, match="no job 'nothing'"):
        client.rerun("nothing")
    for each in client.jobs():
        each.wait(100, check=False)  # whatever became of the jobs of other tests
    client.datasets.rm("rerun-data")
    told = offrl_cli("rerun", job.id)
    assert (told.status, "no dataset 'rerun-data'" in told.err) == (2, True)
    assert job.fetch(tmp_path / "policy.pt", kind="torchscript", seed=5).exists()  # made from the checkpoint alone


def test_a_train_online_job_is_repeated_into_a_new_dataset(client, daemon, offrl_cli):
    gathers = {"steps": 60, "random_steps": 20, "update_interval": 20, "config": {"encoder.units": [8], "batch_size": 8}, "seed": 4}
    job = client.train_online("dqn", env="CartPole-v1", into="rerun-gathered", epsilon=0.5, device="cpu", **gathers)
    job.wait(100)
    told = offrl_cli("rerun", job.id)
    assert told.status == 2 and f"`offrl rerun {job.id} --into NAME`" in told.err
    told = offrl_cli("rerun", job.id, "--into", "rerun-gathered")
    assert told.status == 2 and "dataset 'rerun-gathered' already exists" in told.err
    told = offrl_cli("rerun", job.id, "--into", "rerun-again", "--json")
    assert told.status == 0, told.err
    again = client.job(told.json["job"])
    info = again.wait(100)
    assert (info.rerun_of, info.dataset, info.spec["seeds"]) == (job.id, "rerun-again", [4])
    assert info.spec["config"] == json.loads((daemon.state_dir / "jobs" / job.id / "config.json").read_text())
    assert checkpoint(daemon, again.id, 60) == checkpoint(daemon, job.id, 60)


def test_a_train_online_job_that_kept_no_steps_is_repeated_without_a_dataset(client, daemon, offrl_cli):
    config = {"rollout_steps": 32, "batch_size": 16}
    job = client.train_online("ppo", env="CartPole-v1", steps=64, seed=2, config=config, device="cpu")
    job.wait(100)
    told = offrl_cli("rerun", job.id, "--json")
    assert told.status == 0, told.err
    again = client.job(told.json["job"])
    assert again.wait(100).rerun_of == job.id
    step = max(int(path.stem) for path in (daemon.state_dir / "jobs" / job.id / "checkpoints").glob("*.safetensors"))
    assert checkpoint(daemon, again.id, step) == checkpoint(daemon, job.id, step)
