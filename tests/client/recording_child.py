"""A process that records numbered episodes, for the tests that kill it: ``recording_child.py URL SPOOL DATASET FIRST COUNT``.

Episode k has k % 4 + 2 steps, whose observations and rewards hold k. After COUNT whole episodes it begins one more, takes three steps,
waits until they are durable, says ``open`` and sleeps.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import offrl


def steps_of(episode: int) -> int:
    return episode % 4 + 2


def observation(episode: int, step: int) -> np.ndarray:
    return np.array([episode, step], np.float32)


def record(recorder: offrl.Recorder, first: int, count: int) -> None:
    """Whole episodes."""
    for episode in range(first, first + count):
        recorder.begin(observation(episode, 0))
        for step in range(steps_of(episode)):
            recorder.step([0.5], float(episode), observation(episode, step + 1), terminated=step == steps_of(episode) - 1)


def main() -> None:
    url, spool, dataset, first, count = sys.argv[1:]
    recorder = offrl.Recorder(url or None, dataset, spool=spool, sync_s=0.05, send_every_s=0.2)
    record(recorder, int(first), int(count))
    recorder.begin(observation(int(first) + int(count), 0))
    for step in range(3):
        recorder.step([0.5], 0.0, observation(int(first) + int(count), step + 1))
    print("recorded", flush=True)
    time.sleep(1.0)  # twenty syncs
    print("open", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
