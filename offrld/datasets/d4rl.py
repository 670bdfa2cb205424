"""The files of D4RL and d4rl-pybullet by name: from the local folder, or downloaded from their published addresses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from offrl.named import Named
from offrl_store.errors import InvalidInput
from offrld.datasets import places
from offrld.datasets.download import Progress, fetch
from offrld.importers import open_source
from offrld.importers.source import Source

_MAZES = {"umaze": "u-maze", "medium": "big-maze", "large": "hardest-maze"}
_KITCHEN = {
    "complete": "mini_kitchen_microwave_kettle_light_slider", "partial": "kitchen_microwave_kettle_light_slider",
    "mixed": "kitchen_microwave_kettle_bottomburner_light",
}  # fmt: skip
_HANDS = {"human": "{}-v0_demos_clipped", "cloned": "{}-demos-v0-bc-combined", "expert": "{}-v0_expert_clipped"}
_DROPBOX = {  # d4rl-pybullet
    "hopper-bullet-medium-v0": "w22kgzldn6eng7j", "hopper-bullet-mixed-v0": "xv3p0h7dzgxt8xb", "hopper-bullet-random-v0": "bino8ojd7iq4p4d",
    "halfcheetah-bullet-medium-v0": "v4xgssp1w968a9l", "halfcheetah-bullet-mixed-v0": "scj1rqun963aw90",
    "halfcheetah-bullet-random-v0": "jnvpb1hp60zt2ak", "ant-bullet-medium-v0": "6n79kwd94xthr1t", "ant-bullet-mixed-v0": "pmy3dzab35g4whk",
    "ant-bullet-random-v0": "2xpmh4wk2m7i8xh", "walker2d-bullet-medium-v0": "v0f2kz48b1hw6or",
    "walker2d-bullet-mixed-v0": "i4u2ii0d85iblou", "walker2d-bullet-random-v0": "1gwcfl2nmx6878m",
}  # fmt: skip


def url_of(name: str) -> str:
    """Return the published address of the file of a name."""
    if name in _DROPBOX:
        return f"https://www.dropbox.com/s/{_DROPBOX[name]}/{name}.hdf5?dl=1"
    return f"{places.D4RL}/{_path(name)}.hdf5"


def _path(name: str) -> str:
    """Return folder and name of the file below D4RL's address, without its suffix."""
    body, _, version = name.rpartition("-v")
    first, *rest = body.split("-")
    level = "_".join(rest)
    if first == "bullet":
        return f"bullet/{body}-sparse" if rest[0] == "maze2d" else f"bullet/bullet-{rest[0]}_{'_'.join(rest[1:])}"
    if first == "antmaze":
        maze, noise = _MAZES[rest[0]], rest[1] if len(rest) > 1 else ""
        starts, goals = str(noise != ""), str(noise == "diverse")
        file = f"Ant_maze_{maze}_noisy_multistart_{starts}_multigoal_{goals}_sparse"
        return f"ant_maze_v2/{file}_fixed" if version == "2" else f"ant_maze_new/{file}"
    if first == "maze2d":
        return f"maze2d/maze2d-{rest[0]}-{'dense' if rest[-1] == 'dense' else 'sparse'}-v1"
    if first == "kitchen":
        return f"kitchen/{_KITCHEN[level]}-v0"
    if first in ("pen", "hammer", "relocate", "door"):
        return f"hand_dapg_v1/{name}" if version == "1" else f"hand_dapg/{_HANDS[level].format(first)}"
    if version == "2":
        return f"gym_mujoco_v2/{first}_{level}-v2"
    if level == "medium_replay":
        return f"gym_mujoco/{'walker' if first == 'walker2d' else first}_mixed"
    return f"gym_mujoco/{first}_{level}"


def find_file(name: str, message: Callable[[str], None], progress: Progress | None = None) -> Path:
    """Find the file of a name: in the local folder by its published name or as ``NAME.hdf5``, in a mirror folder, or downloaded."""
    url = url_of(name)
    published = PurePosixPath(urlsplit(url).path)
    folder, source = places.d4rl_folder(), places.d4rl_source()
    here = [folder / published.name, folder / f"{name}.hdf5"]
    if source is not None and not places.is_address(source):
        mirror = Path(os.path.expanduser(source))
        here += [mirror / published.relative_to("/").name, mirror / published.parent.name / published.name, mirror / f"{name}.hdf5"]
    for file in here:
        if file.is_file():
            return file
    if source is not None and not places.is_address(source):
        raise InvalidInput(f"{source} holds no {published.name}", hint=f"put the file there, or into {folder}")
    places.check_downloads(f"{published.name} ({name})", folder)
    if source is not None:
        url = f"{source.rstrip('/')}/{published.name if name in _DROPBOX else _path(name) + '.hdf5'}"
    message(f"downloading {url}")
    return fetch(url, here[0], progress=progress)


def open_named(
    named: Named, message: Callable[[str], None], progress: Progress | None, *, options: Mapping[str, Any], skip_bad: bool
) -> Source:
    """Open the episodes of a name. Raises `InvalidInput`, `DownloadFailed`, `DiskFull`."""
    file = find_file(named.name, message, progress)
    environment = {} if named.env_id is None else {"env_id": named.env_id}
    return open_source(file, "d4rl", options=environment | dict(options), skip_bad=skip_bad)
