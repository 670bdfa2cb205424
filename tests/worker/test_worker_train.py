"""Train workers: what they leave, and that pausing, killing and resuming change nothing of it."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors import safe_open

from offrl import Policy, rollout
from offrl.wire import Event

PLUGINS = Path(__file__).parent / "plugins"


def contents(run: Path, *patterns: str) -> dict[str, Any]:
    """Relative path -> what a run folder's files hold: every byte of it."""
    paths = [path for pattern in patterns for path in sorted(run.glob(pattern))]
    return {str(path.relative_to(run)): checkpoint(path) if path.suffix == ".safetensors" else path.read_bytes() for path in paths}


def checkpoint(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Tensors and metadata of a checkpoint; the order in which safetensors writes the metadata is not fixed."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


def hidden(run: Path) -> list[str]:
    """Temporary files that should not be there any more."""
    return [str(path.relative_to(run)) for path in run.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(("algorithm", "dataset"), [("td3_bc", "pendulum"), ("discrete_cql", "cartpole")])
def test_a_killed_and_paused_run_ends_like_an_undisturbed_one(algorithm, dataset, train, wait_for):
    spec = {"steps": 240, "seeds": [0, 3], "eval_every": 80, "validation": 0.05, "config": {"batch_size": 32}}
    straight = train("straight", algorithm, dataset, **spec)
    assert straight.end()["state"] == "succeeded"

    often = {"OFFRLD_CHECKPOINT_SECONDS": "0"}  # a checkpoint at every metric row, so that the kill often falls into one
    killed = train("job", algorithm, dataset, environment=often, **spec)
    wait_for(lambda: len(list(killed.run.glob("checkpoints/0*"))) >= 2)
    killed.signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL

    paused = train("job", algorithm, dataset, attempt=2, environment=often, **spec)
    paused.until(lambda event: event["type"] == "progress")
    paused.send({"type": "pause"})
    assert paused.end()["state"] == "paused"
    step = int(max(paused.run.glob("checkpoints/0*")).stem)
    assert 0 < step < 240

    resumed = train("job", algorithm, dataset, attempt=3, **spec)
    assert resumed.end()["state"] == "succeeded"
    assert f"resumed from the checkpoint at step {step}" in [event["message"] for event in resumed.of_type("message")]

    patterns = ("checkpoints/*", "seed-*/metrics/*.csv", "config.json")
    expected, actual = contents(straight.run, *patterns), contents(resumed.run, *patterns)
    assert list(actual) == list(expected)
    assert [name for name in actual if actual[name] != expected[name]] == []
    assert [Path(name).stem for name in actual if name.startswith("checkpoints")] == ["000000000080", "000000000160", "000000000240"]
    assert {path.name for path in resumed.run.glob("seed-*/policy-*")} == {"policy-000000000240.onnx"}
    assert hidden(resumed.run) == []


def test_metrics_and_progress_report_the_run(train):
    worker = train("job", "discrete_cql", "cartpole", steps=250, seeds=[1, 2], validation=0.2)
    assert worker.end()["state"] == "succeeded"
    lines = (worker.run / "seed-1" / "metrics" / "loss.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,value"
    assert [line.split(",")[:2] for line in lines[1:]] == [[str(i), str(2 * i)] for i in range(1, 126)]
    validation = (worker.run / "seed-2" / "metrics" / "validation_loss.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in validation[1:]] == [str(25 * i) for i in range(1, 11)]
    assert (worker.run / "seed-2" / "metrics" / "validation_action_match.csv").exists()

    progress = worker.of_type("progress")
    assert (progress[0]["step"], progress[0]["updates_per_second"]) == (1, None)
    assert (progress[-1]["step"], progress[-1]["eta_s"]) == (250, 0.0)
    assert set(progress[-1]["metrics"]["loss"]) == {"1", "2"}
    assert float(lines[-1].split(",")[2]) == progress[-1]["metrics"]["loss"]["1"]
    for event in progress:
        Event.model_validate({**event, "n": 1, "job": "job", "state": "running"})
    assert [json.loads(line) for line in (worker.run / "events.jsonl").read_text().splitlines()] == worker.seen

    spec = json.loads((worker.run / "spec.json").read_text())
    assert spec["seeds"] == [1, 2]
    assert spec["snapshot"].startswith("0:104:")
    assert spec["run"]["threads"] == 1
    assert "torch" in spec["versions"]
    assert json.loads((worker.run / "config.json").read_text())["batch_size"] == 32


def test_evaluation_runs_the_file_that_is_fetched(train):
    worker = train(
        "job",
        "discrete_bc",
        "cartpole",
        steps=100,
        eval_every=50,
        eval_env="offrld_noisy_env:NoisyCartPole-v0",
        eval_episodes=3,
        environment={"PYTHONPATH": str(PLUGINS)},
    )
    assert worker.end()["state"] == "succeeded"  # although the plugin printed to the process's standard output
    assert "hello from a plugin" in worker.log.read_text()
    rows = (worker.run / "seed-0" / "metrics" / "return_mean.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["50", "100"]
    import gymnasium

    for step, row in zip((50, 100), rows, strict=True):
        policy = Policy(worker.run / "seed-0" / f"policy-{step:012d}.onnx")
        with gymnasium.make("CartPole-v1", max_episode_steps=50) as env:
            assert rollout.evaluate(policy, env, 3, 1000).return_mean == pytest.approx(float(row.split(",")[2]))
        assert policy.metadata["evaluation"]["return_mean"] == pytest.approx(float(row.split(",")[2]))
        assert (policy.metadata["job"], policy.metadata["seed"], policy.metadata["step"]) == ("job", 0, step)
        assert policy.metadata["dataset"]["name"] == "cartpole"
    assert worker.of_type("progress")[-1]["metrics"]["return_mean"]["0"] == pytest.approx(float(rows[-1].split(",")[2]))
    assert hidden(worker.run) == []


def test_a_transformer_of_stacked_frames_is_evaluated_with_its_own_target(train):
    config = {"context_size": 3, "frame_stack": 2, "batch_size": 16, "encoder.units": [8], "transformer.layers": 1}
    worker = train("job", "discrete_decision_transformer", "cartpole", steps=20, config=config, eval_env="CartPole-v1", eval_episodes=2)
    assert worker.end()["state"] == "succeeded", worker.log.read_text()
    policy = Policy(worker.run / "seed-0" / "policy-000000000020.onnx")
    assert (policy.frame_stack, policy.metadata["context"]["length"], policy.observation_shape) == (2, 3, (4,))
    evaluation = policy.metadata["evaluation"]
    assert evaluation["target_return"] == policy.target_return > 0
    assert rollout.evaluate(policy, "CartPole-v1", 2, 1000).return_mean == pytest.approx(evaluation["return_mean"])


def test_a_damaged_checkpoint_is_skipped_and_any_checkpoint_can_be_exported(train, start):
    spec = {"steps": 200, "eval_every": 100, "seeds": [0, 1]}
    assert train("job", "bc", "pendulum", **spec).end()["state"] == "succeeded"
    run = train("job", "bc", "pendulum", attempt=2, **spec)  # a finished job may be started again: nothing is left to do
    assert run.end()["state"] == "succeeded"
    before = contents(run.run, "checkpoints/*", "seed-*/metrics/*")

    newest = max(run.run.glob("checkpoints/*"))
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    again = train("job", "bc", "pendulum", attempt=3, **spec)
    assert again.end()["state"] == "succeeded"
    messages = [event["message"] for event in again.of_type("message")]
    assert any("damaged" in message for message in messages)
    assert "resumed from the checkpoint at step 100" in messages
    assert contents(again.run, "checkpoints/*", "seed-*/metrics/*") == before

    export = start("export-1", {"kind": "export", "job": "job", "seed": 1, "step": 100})
    assert export.end()["state"] == "succeeded"
    policy = Policy(again.run / "seed-1" / "policy-000000000100.onnx")
    assert (policy.metadata["job"], policy.metadata["seed"], policy.metadata["step"]) == ("job", 1, 100)
    assert policy.action_low == pytest.approx([-2.0])

    end = start("export-2", {"kind": "export", "job": "job", "step": 150}).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "unknown")
    assert "100, 200" in end["error"]["hint"]


@pytest.mark.parametrize(
    ("algorithm", "dataset", "spec"),
    [
        ("td3_bc", "pendulum", {"seeds": [0, 4], "validation": 0.2, "config": {"observation_scaler": "standard", "batch_size": 32}}),
        pytest.param("discrete_decision_transformer", "cartpole", {"config": {"context_size": 3, "batch_size": 8}}, marks=pytest.mark.slow),
    ],
)
def test_a_policy_is_exported_without_the_dataset_that_it_was_trained_on(algorithm, dataset, spec, train, start, tmp_path):
    run = train("job", algorithm, dataset, steps=2, **spec)
    assert run.end()["state"] == "succeeded"
    seed = spec.get("seeds", [0])[-1]
    path = run.run / f"seed-{seed}" / "policy-000000000002.onnx"
    of_the_run = path.read_bytes()
    metadata = Policy(path).metadata
    path.unlink()
    assert start("with", {"kind": "export", "job": "job", "seed": seed}).end()["state"] == "succeeded"
    assert weights(path) == weights(of_the_run)
    path.unlink()
    for file in sorted((tmp_path / "datasets" / dataset).rglob("*"), reverse=True):
        file.unlink() if not file.is_dir() else file.rmdir()
    without = start("without", {"kind": "export", "job": "job", "seed": seed})
    assert without.end()["state"] == "succeeded"
    assert any("is checked on random observations" in event["message"] for event in without.of_type("message"))
    assert weights(path) == weights(of_the_run)
    again = Policy(path).metadata
    for name in ("space", "config", "dataset", "seed", "step", "job"):
        assert again[name] == metadata[name], name
    assert again["dataset"]["env_id"] is not None
    assert again.get("returns") == metadata.get("returns")


def test_the_last_evaluation_checkpoints_and_each_seeds_best_are_kept(train):
    spec = {"steps": 60, "seeds": [0, 1], "eval_env": "Pendulum-v1", "eval_every": 10, "eval_episodes": 1}
    job = train("job", "bc", "pendulum", start_message={"keep_checkpoints": 2}, **spec)
    assert job.end()["state"] == "succeeded"
    steps = {int(path.stem) for path in job.run.glob("checkpoints/*.safetensors")}
    best = set()
    for seed in (0, 1):
        rows = [line.split(",") for line in (job.run / f"seed-{seed}/metrics/return_mean.csv").read_text().splitlines()[1:]]
        assert [int(step) for _, step, _ in rows] == [10, 20, 30, 40, 50, 60]  # nothing else is forgotten
        best.add(max((float(value), int(step)) for _, step, value in rows)[1])
        assert len(list(job.run.glob(f"seed-{seed}/policy-*.onnx"))) == 6
    assert steps == {50, 60} | best


def test_a_job_whose_evaluations_do_not_improve_ends_early(train):
    """O21: the first evaluation is better than none, the next two are not by a million. Another attempt ends there too: the rows decide."""
    spec = {
        "steps": 100_000,
        "seeds": [0, 1],
        "eval_env": "Pendulum-v1",
        "eval_every": 10,
        "eval_episodes": 1,
        "early_stop": 2,
        "early_stop_delta": 1e6,
    }
    job = train("job", "bc", "pendulum", **spec)
    end = job.end()
    assert (end["state"], end["reason"]) == (
        "succeeded",
        "ended at step 30 of 100000: 2 evaluations in a row without a mean return that was better by more than 1e+06",
    )
    for seed in (0, 1):
        rows = (job.run / f"seed-{seed}/metrics/return_mean.csv").read_text().splitlines()[1:]
        assert [row.split(",")[1] for row in rows] == ["10", "20", "30"]  # the first is better than none
        assert (job.run / f"seed-{seed}/policy-{30:012d}.onnx").exists()
    again = train("job", "bc", "pendulum", attempt=2, **spec)
    assert again.end()["state"] == "succeeded" and again.of_type("progress")[-1]["step"] == 30


def weights(file) -> dict[str, bytes]:
    """The numbers in a policy file."""
    model = onnx.load_from_string(file if isinstance(file, bytes) else file.read_bytes())
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


@pytest.mark.parametrize("how", ["daemon gone", "SIGTERM"])
def test_a_worker_that_must_stop_leaves_a_checkpoint_and_no_end_event(how, train):
    worker = train("job", "bc", "pendulum", steps=1_000_000)
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 1)
    if how == "SIGTERM":
        worker.signal(signal.SIGTERM)
    else:
        worker.close_stdin()
    assert worker.wait() == 75
    assert not worker.of_type("end")
    [checkpoint] = worker.run.glob("checkpoints/*")
    assert int(checkpoint.stem) >= worker.of_type("progress")[-1]["step"]
    assert hidden(worker.run) == []


def test_a_cancelled_job_ends_at_once_without_partial_files(train):
    worker = train("job", "bc", "pendulum", steps=1_000_000)
    worker.until(lambda event: event["type"] == "progress")
    worker.send({"type": "cancel"})
    worker.close_stdin()
    assert worker.end()["state"] == "cancelled"
    assert hidden(worker.run) == []


def test_a_job_that_is_stopped_before_its_start_reports_that(train):
    worker = train("job", "bc", "pendulum", steps=100)
    worker.send({"type": "pause"})
    assert worker.end()["state"] == "paused"
    assert not list(worker.run.glob("seed-*"))


def test_only_the_latest_attempt_works_on_a_job(train, wait_for):
    first = train("job", "bc", "pendulum", attempt=1, steps=1_000_000)
    first.until(lambda event: event["type"] == "progress")
    later = train("job", "bc", "pendulum", attempt=3, steps=1_000_000)  # waits for the lock
    first.close_stdin()
    assert first.wait() == 75
    later.until(lambda event: event["type"] == "message" and event["message"].startswith("resumed from the checkpoint"))
    earlier = train("job", "bc", "pendulum", attempt=2, steps=1_000_000)  # was slow to start: waits too, then sees attempt 3
    later.send({"type": "pause"})
    assert later.end()["state"] == "paused"
    before = contents(earlier.run, "events.jsonl", "checkpoints/*")
    assert earlier.wait() == 75
    assert earlier.seen == []
    assert contents(earlier.run, "events.jsonl", "checkpoints/*") == before


def test_a_loss_that_is_not_finite_ends_the_job(train):
    worker = train("job", "td3_bc", "pendulum", steps=400, eval_every=2, config={"critic_learning_rate": 1e25})
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", "diverged")
    assert "critic of seed 0" in end["error"]["message"]
    assert "by step 2" in end["error"]["message"]
    assert not list(worker.run.glob("checkpoints/*"))  # none but broken ones could be made
    assert "Traceback" not in worker.log.read_text()


def bad(code: str, *words: str, **spec):
    return pytest.param(code, words, spec, id=" ".join(words))


@pytest.mark.parametrize(
    ("code", "words", "spec"),
    [
        bad("invalid_input", "discrete_cql", "continuous", algorithm="discrete_cql"),
        bad("invalid_input", "Hopper-v5", "(11,)", "(3,)", eval_env="Hopper-v5"),
        bad("unknown", "alhpa", config={"alhpa": 1.0}),
    ],
)
def test_errors_are_reported_before_training_starts(code, words, spec, train):
    worker = train("job", spec.pop("algorithm", "td3_bc"), "pendulum", steps=100, **spec)
    end = worker.end()
    assert (end["state"], end["error"]["code"]) == ("failed", code)
    assert all(word in end["error"]["message"] for word in words)
    assert end["error"]["hint"]
    assert "Traceback" not in worker.log.read_text()
    assert not list(worker.run.glob("seed-*")) and not list(worker.run.glob("checkpoints"))


def test_a_dataset_that_was_replaced_is_noticed(train, tmp_path, imported):
    shutil.copytree(imported["cartpole"]["path"], tmp_path / "datasets" / "pendulum")
    end = train("job", "bc", "pendulum", steps=100).end()
    assert (end["state"], end["error"]["code"]) == ("failed", "store_corrupt")
