"""Training continues if its evaluations fail: there is a warning, a metric, a remark beside the success, and the policies exist."""

from __future__ import annotations

from pathlib import Path

from offrl import Policy

PLUGINS = Path(__file__).parent / "plugins"
SMALL = {"batch_size": 32, "encoder.units": [16]}


def rows(worker, name: str, seed: int = 0) -> list[list[str]]:
    path = worker.run / f"seed-{seed}/metrics/{name}.csv"
    return [line.split(",")[1:] for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_evaluations_stop_if_the_environment_always_fails_and_training_succeeds(train):
    spec = {"steps": 50, "eval_every": 10, "eval_env": "offrld_failing_env:Failing-v0", "seeds": [0, 1], "config": SMALL}
    worker = train("job", "discrete_bc", "cartpole", environment={"PYTHONPATH": str(PLUGINS)}, **spec)
    end = worker.end()
    assert end["state"] == "succeeded"
    failed = "offrld_failing_env:Failing-v0 failed in a step at step 0 of episode 1: RuntimeError: the simulator has crashed"
    assert end["reason"] == f"3 evaluations, the last at step 30 failed: {failed}"
    warnings = [event["message"] for event in worker.of_type("message") if event["message"].startswith("warning")]
    assert warnings == [
        f"warning: step {step}: the evaluation of seed 0, 1 failed: {failed}; {rest}"
        for step, rest in ((10, "training continues"), (20, "training continues"), (30, "that is 3 in a row: none is tried again"))
    ]
    assert rows(worker, "return_mean") == []
    assert rows(worker, "evaluation_failed", 1) == [["10", "1.0"], ["20", "2.0"], ["30", "3.0"]]
    assert worker.of_type("progress")[-1]["metrics"]["evaluation_failed"] == {"0": 3.0, "1": 3.0}
    for step in (10, 50):
        assert Policy(worker.run / f"seed-1/policy-{step:012d}.onnx").discrete
    assert 'raise RuntimeError("the simulator has crashed")' in worker.log.read_text()


def test_one_failed_evaluation_is_the_only_one_missing(train):
    spec = {"steps": 20, "eval_every": 10, "eval_env": "offrld_failing_env:FailingOnce-v0", "eval_episodes": 2, "config": SMALL}
    worker = train("job", "discrete_bc", "cartpole", environment={"PYTHONPATH": str(PLUGINS)}, **spec)
    end = worker.end()
    assert end["state"] == "succeeded" and end["reason"].startswith("the evaluation at step 10 failed: ")
    assert [step for step, _ in rows(worker, "return_mean")] == ["20"]
    assert rows(worker, "evaluation_failed") == [["10", "1.0"]]


def test_a_reward_that_is_not_a_number_fails_only_the_evaluation_of_an_online_run(start):
    spec = {
        "kind": "train_online",
        "algorithm": "dqn",
        "env": "CartPole-v1",
        "dataset": "d",
        "steps": 200,
        "eval_every": 100,
        "eval_env": "offrld_failing_env:Odd-v0",
        "config": {"batch_size": 16, "encoder.units": [16]},
    }
    worker = start("job", spec, environment={"PYTHONPATH": str(PLUGINS)})
    end = worker.end()
    assert end["state"] == "succeeded"
    assert end["reason"].startswith("200 steps, ") and end["reason"].endswith("its reward is an array of shape (2,), expected a number")
    assert [step for step, _ in rows(worker, "evaluation_failed")] == ["100", "200"]
