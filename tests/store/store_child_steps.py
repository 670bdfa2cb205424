"""A writer in a process of its own that plays three environments step by step into a bounded store: `python store_child_steps.py PATH RUN`.

Episode k of environment e in run RUN is the numbered episode 3000 RUN + 1000 e + k. Prints "durable COUNT" after each commit and
"synced ENV:NUMBER:STEPS ..." after each sync.
"""

from __future__ import annotations

import sys

import numpy as np
from store_numbered import SIMPLE, numbered_episode

from offrl_store import Episode, EpisodeStore
from offrl_store.errors import StoreNotFound

LIMIT = 300


def whole(number: int) -> Episode:
    """The numbered episode with its final observation."""
    episode = numbered_episode(number)
    observation = episode.observation
    if episode.final_missing:
        observation = np.concatenate([observation, np.ones((1, 3), np.float32)])
    return Episode(observation, episode.action, episode.reward, episode.terminated, episode.extra)


def main(path: str, run: int) -> None:
    try:
        store = EpisodeStore.open(path)
    except StoreNotFound:
        store = EpisodeStore.create(path, SIMPLE, limit_transitions=LIMIT)
    with store.writer() as writer:
        numbers = [3000 * run + 1000 * env for env in range(3)]
        episodes = [whole(number) for number in numbers]
        places = [0, 0, 0]
        for env in range(3):
            writer.begin(episodes[env].observation[0], env=env)
        print("open", flush=True)
        step = 0
        while True:
            step += 1
            for env in range(3):
                episode, t = episodes[env], places[env]
                last = t == episode.steps - 1
                writer.step(
                    episode.action[t],
                    episode.reward[t],
                    episode.observation[t + 1],
                    last and episode.terminated,
                    last and not episode.terminated,
                    env=env,
                    extra={"row": episode.extra["row"][t]},
                )
                places[env] = t + 1
                if last:
                    numbers[env], places[env] = numbers[env] + 1, 0
                    episodes[env] = whole(numbers[env])
                    writer.begin(episodes[env].observation[0], env=env)
            if step % 7 == 0:
                print("durable", writer.commit().count, flush=True)
            if step % 11 == 0:
                count = writer.sync().count
                print("synced", *(f"{env}:{numbers[env]}:{places[env]}" for env in range(3)), flush=True)
                print("durable", count, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
