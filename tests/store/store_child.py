"""A writer in a process of its own, for the tests that kill it: `python store_child.py PATH COUNT [LIMIT]`.

Creates the store if it is not there, appends numbered episodes up to COUNT in groups of 1 to 4 and prints the number of durable ones after
each commit. LIMIT is a largest file size in bytes: the disk is full beyond it.
"""

from __future__ import annotations

import resource
import sys

from store_numbered import SIMPLE, numbered_episode

from offrl_store import EpisodeStore
from offrl_store.errors import DiskFull, StoreNotFound


def main(path: str, count: int, limit: int | None) -> None:
    try:
        store = EpisodeStore.open(path)
    except StoreNotFound:
        store = EpisodeStore.create(path, SIMPLE)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with store.writer() as writer:
        print("open", len(store), flush=True)
        number = len(store)
        while number < count:
            try:
                for _ in range(1 + number % 4):
                    writer.append(numbered_episode(number))
                    number += 1
                writer.commit()
            except DiskFull as error:
                print("full", error.code, flush=True)
                raise SystemExit(0) from error
            print("durable", number, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
