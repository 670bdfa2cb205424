"""The demo: the whole path in one command, as a newcomer runs it."""

from __future__ import annotations

import json
import subprocess
import sys

from offrl import Policy


def test_the_demo_learns_a_policy_that_beats_its_data_and_prints_one_json(tmp_path):
    done = subprocess.run([sys.executable, "-m", "offrl.cli", "demo", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"dataset_return_mean", "return_mean", "updates_per_second", "latency_us", "policy"}
    assert 60 <= result["dataset_return_mean"] <= 200
    assert result["return_mean"] >= 1.5 * result["dataset_return_mean"]
    assert set(result["latency_us"]) == {"median", "p99"}
    assert Policy(tmp_path / result["policy"]).env_id == "CartPole-v1"
