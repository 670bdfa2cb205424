"""The worker's parts by themselves: metric files, TensorBoard events, event lines, blocks, errors, the description."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest

from offrl_store.errors import EmptyStore
from offrld.json_safe import json_safe
from offrld.state.metric_files import MetricFiles
from offrld.state.run_folder import RunFolder
from offrld.worker.failures import to_error
from offrld.worker.pace import Pace
from offrld.worker.report import Reporter


def rows(run: RunFolder, name: str, seed: int = 0) -> list[str]:
    return (run.metrics(seed) / f"{name}.csv").read_text().splitlines()


def test_rows_after_the_checkpoint_are_cut_and_written_again_once(tmp_path):
    run = RunFolder(tmp_path)
    metrics = MetricFiles(run, [0], interval=10)
    for step in (10, 20, 30):
        metrics.record(step, {"loss": {0: step / 3}})
    with (run.metrics(0) / "loss.csv").open("a") as file:
        file.write("4,40,1.2")  # a crash in the middle of a row
    before = rows(run, "loss")[:3]

    resumed = MetricFiles(run, [0], interval=10)
    resumed.resume(20)
    assert rows(run, "loss") == before == ["epoch,step,value", "1,10,3.3333333333333335", "2,20,6.666666666666667"]
    assert resumed.recorded("loss", 20, [0]) and not resumed.recorded("loss", 30, [0])
    assert resumed.latest == {"loss": {0: 6.666666666666667}}
    resumed.record(20, {"loss": {0: 99.0}})
    resumed.record(30, {"loss": {0: 10.0}})
    assert rows(run, "loss") == [*before, "3,30,10.0"]


def test_tensorboard_reads_the_events_and_ignores_cut_rows(tmp_path):
    run = RunFolder(tmp_path)
    first = MetricFiles(run, [0], interval=10)
    for step in (10, 20, 300):
        first.record(step, {"loss": {0: float(step)}, "q": {0: -0.5}})
    second = MetricFiles(run, [0], interval=10)
    second.resume(20)
    second.record(30, {"loss": {0: 31.0}})

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard(0)), purge_orphaned_data=True)
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 10.0), (20, 20.0), (30, 31.0)]
    assert [(e.step, e.value) for e in events.Scalars("q")] == [(10, -0.5), (20, -0.5)]


def test_event_lines_are_json_whatever_the_numbers(tmp_path):
    reading, writing = os.pipe()
    report = Reporter(writing, tmp_path / "events.jsonl")
    metrics = {"loss": {0: float("nan"), 1: 1 / 3}, "gone": {0: float("inf")}}
    report.progress(1, 2, updates_per_second=float("inf"), metrics=metrics, force=True)
    report.end("failed", {"code": "x", "message": "y", "hint": ""})
    report.message("never said")
    lines = [json.loads(line, parse_constant=pytest.fail) for line in os.read(reading, 65536).splitlines()]
    os.close(reading)
    os.close(writing)
    assert [line["type"] for line in lines] == ["progress", "end"]
    assert lines[0]["updates_per_second"] is None
    assert lines[0]["metrics"] == {"loss": {"1": 1 / 3}}
    assert [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()] == lines
    assert json_safe({"a": [float("nan"), 1.5]}) == {"a": [None, 1.5]}


def test_evaluations_are_counted_since_the_last_improvement(tmp_path):
    run = RunFolder(tmp_path)
    metrics = MetricFiles(run, [3], 10)
    for step, value in enumerate((1.0, 3.0, 3.05, 2.0, 4.0, 4.0), start=1):
        metrics.record(10 * step, {"return_mean": {3: value}})
    metrics.sync()
    counted = [metrics.evaluations_since_better("return_mean", 3, 10 * step, 0.1) for step in range(7)]
    assert counted == [0, 0, 0, 1, 2, 0, 1]
    assert metrics.evaluations_since_better("return_mean", 3, 30, 0.0) == 0


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"type": "mess')
    with open(os.devnull, "wb") as nothing:
        Reporter(nothing.fileno(), path).message("hello")
    assert json.loads(path.read_text().splitlines()[1])["message"] == "hello"


def test_blocks_grow_to_a_quarter_of_a_second(tmp_path):
    pace = Pace()
    assert (pace.block, pace.updates_per_second) == (1, None)
    pace.add(1, 30.0)  # compiling: counts for nothing
    assert (pace.block, pace.updates_per_second) == (1, None)
    for _ in range(12):
        pace.add(pace.block, pace.block / 1000)
    assert pace.block == pytest.approx(250, abs=1)
    assert pace.updates_per_second == pytest.approx(1000)
    for _ in range(100):
        pace.add(pace.block, pace.block / 10)
    assert 2 <= pace.block <= 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EmptyStore("no transition"), "empty_dataset"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (ZeroDivisionError("division by zero"), "internal"),
    ],
)
def test_an_exception_has_a_code_and_a_hint(error, code, capfd):
    described = to_error(error)
    assert described["code"] == code
    assert described["message"] and "\n" not in described["message"]
    in_log = type(error).__name__ in capfd.readouterr().err
    assert in_log == (code != "empty_dataset")  # what the user did wrong needs no traceback


def test_the_description_names_every_algorithm_with_its_settings():
    done = subprocess.run([sys.executable, "-m", "offrld.worker.describe"], capture_output=True, check=True)
    described = json.loads(done.stdout)
    assert "CartPole-v1" in described["environments"]
    assert "torch" in described["versions"]
    algorithms = {entry["name"]: entry for entry in described["algorithms"]}
    assert {"bc", "td3_bc", "iql", "rebrac", "discrete_bc", "dqn", "double_dqn", "discrete_cql"} <= set(algorithms)
    setting = algorithms["td3_bc"]["config"]["critic_learning_rate"]
    assert (setting["type"], setting["default"], setting["low"], setting["exclusive_low"]) == ("float", 3e-4, 0.0, True)
    assert setting["help"]
    assert algorithms["td3_bc"]["actions"] == "continuous"
    assert "d3rlpy" in algorithms["td3_bc"]["presets"]
