"""Train workers that start from another job, go on for more steps, or lose a seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from offrl import Policy
from offrld.engine.updates import checkpoint


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    with safe_open(run / "checkpoints" / f"{step:012d}.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tampered(run: Path, step: int, change: Callable[[torch.Tensor], object]) -> Path:
    """A checkpoint whose critics' parameters are changed: what a run that goes wrong looks like."""
    path = run / "checkpoints" / f"{step:012d}.safetensors"
    state, description = checkpoint.read(path)
    for name, value in state.items():
        if name.startswith("params/critic."):
            change(value)
    checkpoint.write(path, state, {name: value for name, value in description.items() if name not in ("format", "crc32")})
    return path


def test_continuing_for_more_steps_equals_one_longer_run(train, tmp_path):
    spec = {"seeds": [0, 3], "config": {"batch_size": 32}}
    straight = train("job", "td3_bc", "pendulum", state=tmp_path / "straight", steps=120, **spec)
    assert straight.end()["state"] == "succeeded"
    assert train("job", "td3_bc", "pendulum", steps=60, **spec).end()["state"] == "succeeded"
    more = train("job", "td3_bc", "pendulum", attempt=2, steps=120, **spec)
    assert more.end()["state"] == "succeeded"
    assert same(tensors(straight.run, 120), tensors(more.run, 120))
    for name in ("critic_loss", "actor_loss"):
        rows = [(run / "seed-3" / "metrics" / f"{name}.csv").read_text() for run in (straight.run, more.run)]
        assert rows[0] == rows[1]


def test_a_job_starts_from_the_networks_of_another_and_keeps_them(train, tmp_path, start):
    cheap = {"batch_size": 32}
    source = train("source", "iql", "pendulum", steps=40, seeds=[1, 2], config=cheap)
    assert source.end()["state"] == "succeeded"
    first = tensors(source.run, 40)
    job = train("job", "iql", "pendulum", steps=1, seeds=[2], start="source", config={**cheap, "actor_learning_rate": 1e-12})
    assert job.end()["state"] == "succeeded"
    mine = tensors(job.run, 1)
    actor = [name for name in mine if name.startswith("params/actor.")]
    assert actor
    for name in actor:
        torch.testing.assert_close(mine[name][0], first[name][1], rtol=0, atol=1e-9)
    assert mine["optimizer/train.critic/count"] == first["optimizer/train.critic/count"] + 1
    inherited, origin = job.run / "taken" / "start.safetensors", source.run / "checkpoints" / "000000000040.safetensors"
    assert inherited.stat().st_ino == origin.stat().st_ino

    for path in sorted(source.run.rglob("*"), reverse=True):  # as if it were removed: the job has what it took
        path.unlink() if not path.is_dir() else path.rmdir()
    again = train("job", "iql", "pendulum", attempt=2, steps=3, seeds=[2], start="source", config={**cheap, "actor_learning_rate": 1e-12})
    assert again.end()["state"] == "succeeded"
    gone = train("late", "iql", "pendulum", steps=3, start="source").end()
    assert (gone["state"], gone["error"]["code"]) == ("failed", "invalid_input")
    assert "'source' has no checkpoint" in gone["error"]["message"]


def test_one_seed_that_diverges_leaves_the_others_alone(train, start):
    spec = {"seeds": [0, 1], "config": {"batch_size": 32}, "steps": 40}
    source = train("source", "td3_bc", "pendulum", **spec)
    assert source.end()["state"] == "succeeded"
    path = tampered(source.run, 40, lambda critic: critic[0].fill_(float("nan")))
    job = train("source", "td3_bc", "pendulum", attempt=2, **{**spec, "steps": 80})
    end = job.end()
    assert end["state"] == "succeeded"
    assert "of seed 0 became nan by step" in end["reason"]
    assert any("the other seeds continue" in event["message"] for event in job.of_type("message"))
    Policy(job.run / "seed-1" / "policy-000000000080.onnx")
    assert not (job.run / "seed-0" / "policy-000000000080.onnx").exists()
    assert path.exists()  # the last checkpoint at which its metrics were in order
    exported = start("export", {"kind": "export", "job": "source", "seed": 0}).end()
    assert (exported["state"], exported["error"]["code"]) == ("failed", "diverged")
    rows = (job.run / "seed-0" / "metrics" / "critic_loss.csv").read_text().splitlines()
    assert json.loads(rows[-1].split(",")[1]) <= 41


def test_exploding_values_end_the_job_and_keep_an_earlier_checkpoint(train):
    spec = {"config": {"batch_size": 32}, "eval_every": 20}
    source = train("job", "td3_bc", "pendulum", steps=40, **spec)
    assert source.end()["state"] == "succeeded"
    path = tampered(source.run, 40, lambda critic: critic.mul_(2000.0))
    worker = train("job", "td3_bc", "pendulum", attempt=2, steps=80, **spec)
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", "diverged")
    assert "of seed 0 ran away to" in end["error"]["message"]
    assert end["error"]["message"].endswith("by step 41")
    assert end["error"]["hint"].startswith("the checkpoint at step 40, from before that, is kept; try a smaller learning rate")
    assert path.exists()


@pytest.mark.parametrize(("spec", "words"), [({"start": "source", "transfer": "all"}, "has no network 'critic'")])
def test_an_unfit_start_is_refused_with_a_reason(train, spec, words):
    assert train("source", "bc", "pendulum", steps=2).end()["state"] == "succeeded"
    end = train("job", "td3_bc", "pendulum", steps=2, **spec).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "invalid_input")
    assert words in end["error"]["message"]
