"""Workers that wait for a job, that are asked to stop, and that cannot: the real worker process, on its pipes and by signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from worker_process import WorkerProcess

PLUGINS = Path(__file__).parent / "plugins"
STOP_S = 10.0  # what a worker has for its checkpoint


def test_a_spare_worker_waits_idle_and_runs_the_job_like_any_worker(imported, tmp_path, wait_for):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "pendulum").symlink_to(imported["pendulum"]["path"])
    spec = {"kind": "train", "algorithm": "bc", "dataset": "pendulum", "steps": 20, "device": "auto", "runner": "eager"}
    run = tmp_path / "jobs" / "job"
    worker = WorkerProcess.spare(tmp_path)
    try:
        wait_for(lambda: worker.signs == [{"type": "ready"}])
        process = psutil.Process(worker.process.pid)
        threads, before, since = process.num_threads(), sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - since < 1.0:
            assert worker.process.poll() is None
            time.sleep(0.1)
        assert sum(process.cpu_times()[:2]) == before  # it sleeps in a read
        assert threads <= 2
        run.mkdir(parents=True)
        worker.send(
            {
                "type": "start",
                "job": "job",
                "attempt": 1,
                "state_dir": str(tmp_path),
                "spec": spec,
                "import_roots": [],
                "snapshot": imported["pendulum"]["snapshot"],
                "folder": str(run),
                "log": str(run / "log.txt"),
                "device": "cpu",
                "environment": {"CUDA_VISIBLE_DEVICES": ""},
                "stop_s": 9.0,
            }
        )
        first = worker.until(lambda event: event["type"] == "progress")
        assert process.cwd() == str(run)
        assert worker.end()["state"] == "succeeded"
    finally:
        worker.close()
    assert first["step"] == 1
    assert "first update" in (run / "log.txt").read_text()
    assert worker.log.read_text() == ""  # nothing of the job in the log of the spares
    assert json.loads((run / "spec.json").read_text())["spec"]["device"] == "cpu"
    assert worker.signs[1]["busy"] == "loading"


def test_a_spare_worker_ends_with_its_pipe(tmp_path):
    worker = WorkerProcess.spare(tmp_path)
    try:
        worker.close_stdin()
        assert worker.wait() == 75
    finally:
        worker.close()


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_terminated_worker_writes_its_checkpoint_in_time(train, wait_for, seeds):
    worker = train("job", "td3_bc", "pendulum", steps=10**6, seeds=list(range(seeds)))
    worker.until(lambda event: event["type"] == "progress" and event["step"] > 10)
    wait_for(lambda: worker.signs[-1]["busy"] == "")  # signs of life come from the loop
    before = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 75
    took = time.monotonic() - before
    (checkpoint,) = (worker.run / "checkpoints").glob("0*")
    assert took < STOP_S, took
    print(f"checkpoint {took:.2f} s after SIGTERM")
    # It is that of the last update, not an earlier one.
    assert f"stopped with a checkpoint at step {int(checkpoint.stem)}" in worker.log.read_text()


def test_a_worker_that_cannot_stop_is_ended_and_logs_the_last_checkpoint(train, wait_for):
    worker = train(
        "job",
        "discrete_bc",
        "cartpole",
        steps=20,
        eval_every=10,
        eval_env="offrld_stuck_env:StuckCartPole-v0",
        eval_episodes=1,
        environment={"PYTHONPATH": os.pathsep.join([str(PLUGINS), *sys.path])},
        start_message={"stop_s": 0.5},
    )
    wait_for(lambda: "stuck from now on" in worker.log.read_text())
    assert [path.stem for path in worker.run.glob("checkpoints/0*")] == ["000000000010"]
    worker.signal(signal.SIGUSR1)  # as the daemon asks before it kills a hung worker
    wait_for(lambda: "offrld_stuck_env.py" in worker.log.read_text())
    beats = len(worker.signs)
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 75  # within a deadline that is far from the hour for which it hangs
    assert "the job will continue from the checkpoint at step 10" in worker.log.read_text()
    assert len(worker.signs) == beats  # while it hung it gave no sign of life
    assert worker.of_type("end") == []
