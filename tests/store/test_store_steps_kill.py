"""Writers that step and evict, killed at random moments: no acknowledged episode or synced step is missing or duplicated."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store_child_steps import LIMIT, whole

from offrl_store import EpisodeStore, check
from offrl_store.errors import StoreNotFound

CHILD = Path(__file__).with_name("store_child_steps.py")


def play_and_kill(path: Path, times: int) -> None:
    chance, acknowledged, evicted = random.Random(1), 0, 0
    for run in range(times):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen([sys.executable, str(CHILD), str(path), str(run)], stdout=subprocess.PIPE, text=True, env=environment)
        lines = []
        try:
            for _ in range(chance.choice([0, 1, 3, 9, 30])):
                lines.append(process.stdout.readline())
            select.select([process.stdout], [], [], chance.random() * 0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()  # not communicate(), which would lose what readline() has read ahead
            process.stdout.close()
            process.wait(timeout=120)
        lines = [line.split() for line in lines if line.endswith("\n")]
        acknowledged = max([acknowledged, *(int(line[1]) for line in lines if line[0] == "durable")])
        synced = [line[1:] for line in lines if line[0] == "synced"][-1:]
        try:
            store = EpisodeStore.open(path)
        except StoreNotFound:
            assert acknowledged == 0
            continue
        assert store.snapshot().count >= acknowledged
        with store.writer(keep=[store.snapshot()]) as writer:
            for env, steps in writer.open_episodes.items():
                if steps:
                    writer.end(env=env)
                else:
                    writer.discard(env)
        found = {}
        for episode in store.episodes:
            number = int(episode.extra["row"][0]) // 1000
            assert number not in found
            found[number], due = episode.steps, whole(number)
            assert np.array_equal(episode.observation, due.observation[: episode.steps + 1])
            assert np.array_equal(episode.reward, due.reward[: episode.steps])
            assert not episode.terminated or (due.terminated and episode.steps == due.steps)
        for entry in synced[0] if synced else ():
            _, number, steps = map(int, entry.split(":"))
            assert not steps or found.get(number, 0) >= steps, entry
        acknowledged = max(acknowledged, store.snapshot().count)
        evicted = max(evicted, store.first)
        assert check(path) == []
    with EpisodeStore.open(path).writer():
        pass
    assert EpisodeStore.open(path).transition_count <= LIMIT
    assert evicted > 0


def test_steps_and_evictions_survive_kill_minus_nine(tmp_path):
    play_and_kill(tmp_path / "s", 20)


@pytest.mark.slow
def test_steps_and_evictions_survive_five_hundred_kills(tmp_path):
    play_and_kill(tmp_path / "s", 500)
