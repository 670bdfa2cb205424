"""Local folders and addresses of published datasets, from the environment variables of their own tools and ours.

| variable | meaning | default |
|---|---|---|
| ``D4RL_DATASET_DIR`` | folder of D4RL's, d4rl-pybullet's and d4rl-atari's files | ``~/.d4rl/datasets`` |
| ``MINARI_DATASETS_PATH`` | root of Minari's datasets | ``~/.minari/datasets`` |
| ``MINARI_REMOTE`` | source of Minari's datasets: ``hf://NAME``, ``gcp://BUCKET``, http or a folder | ``hf://farama-minari`` |
| ``OFFRL_ATARI_SOURCE`` | source of the DQN replay data: ``gs://``, http, or a folder that mirrors the bucket | Google's bucket |
| ``OFFRL_D4RL_SOURCE`` | source of D4RL's files: an http address, or a folder | as published |
| ``OFFRL_DATASETS`` | folder of the stores that `offrld.datasets.get` makes | ``~/.offrl/datasets`` |
| ``OFFRL_DOWNLOADS`` | ``0`` disables downloads | ``1`` |
"""

from __future__ import annotations

import os
from pathlib import Path

from offrl.address import user_folder
from offrl.errors import DownloadFailed, InvalidInput

ATARI = "gs://atari-replay-datasets/dqn"
D4RL = "http://rail.eecs.berkeley.edu/datasets/offline_rl"
MINARI = "hf://farama-minari"


def d4rl_folder() -> Path:
    return _folder("D4RL_DATASET_DIR", ".d4rl/datasets")


def minari_folder() -> Path:
    return _folder("MINARI_DATASETS_PATH", ".minari/datasets")


def stores_folder() -> Path:
    return _folder("OFFRL_DATASETS", ".offrl/datasets")


def atari_source() -> str:
    return os.environ.get("OFFRL_ATARI_SOURCE") or ATARI


def d4rl_source() -> str | None:
    """Return the source of D4RL's files; None for their published addresses."""
    return os.environ.get("OFFRL_D4RL_SOURCE") or None


def minari_remote() -> str:
    return os.environ.get("MINARI_REMOTE") or MINARI


def is_address(source: str) -> bool:
    """Return whether a source is an address; otherwise it is a folder, which is read in place."""
    return source.startswith(("http://", "https://", "gs://", "hf://", "gcp://"))


def check_downloads(name: str, folder: Path) -> None:
    """Raise `DownloadFailed` if downloads are disabled."""
    if os.environ.get("OFFRL_DOWNLOADS", "1") == "0":
        raise DownloadFailed(f"{name} is not in {folder}", hint="put its files there; downloads are switched off (OFFRL_DOWNLOADS=0)")


def _folder(variable: str, below_home: str) -> Path:
    folder = user_folder(variable, below_home)
    if folder is None:
        raise InvalidInput("this user has no home for published datasets", hint=f"name a folder with {variable}, or set HOME")
    return Path(os.path.expanduser(folder))  # unlike Path.expanduser, it takes a user who is not there for a name
