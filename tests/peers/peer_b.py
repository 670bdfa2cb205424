"""Run by the Python of LeRobot and robomimic: reads what we exported, and (LeRobot) records a further episode into it.

``peer_b.py LIBRARY ROOT NAMES``: for each name ``ROOT/NAME`` is read; what was seen goes to ``ROOT/NAME.npz``. A line of JSON per name says
what failed.
"""

import json
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

warnings.simplefilter("ignore")


def lerobot(root, name):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from PIL import Image

    opened = LeRobotDataset("a/b", root=root / name)
    items = [opened[i] for i in range(len(opened))]
    arrays = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0] if key != "task"}
    before = opened.num_episodes
    last = {key: arrays[key][-2:] for key in arrays}
    for _ in range(2):
        given = {}
        for key, feature in opened.features.items():
            if key in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
                continue
            rows = last[key][-1]
            if feature["dtype"] == "image":
                pixels = np.round(np.moveaxis(rows, 0, -1) * 255).astype(np.uint8)
                given[key] = Image.fromarray(pixels[..., 0]) if pixels.shape[-1] == 1 else pixels  # of arrays it takes three channels alone
            else:
                given[key] = rows.reshape(feature["shape"]).astype(feature["dtype"])
        opened.add_frame(given | {"task": "more"})
    opened.save_episode()
    opened.finalize()
    again = LeRobotDataset("a/b", root=root / name)
    assert again.num_episodes == before + 1 and len(again) == len(items) + 2
    for i in range(len(again)):
        again[i]
    return arrays


def robomimic(root, name):
    import h5py
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    with h5py.File(root / name) as file:
        keys = []
        file["data/demo_0/obs"].visititems(lambda key, each: keys.append(key) if isinstance(each, h5py.Dataset) else None)
        shapes = {key: file[f"data/demo_0/obs/{key}"].shape for key in keys}
    pixels = [key for key in keys if len(shapes[key]) == 4]
    low = [key for key in keys if key not in pixels]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": low, "rgb": pixels}})
    data = SequenceDataset(
        str(root / name),
        obs_keys=keys,
        dataset_keys=("actions", "rewards", "dones"),
        load_next_obs=True,
        seq_length=1,
        hdf5_cache_mode=None,
        hdf5_use_swmr=False,
    )
    items = [data[i] for i in range(len(data))]
    arrays = {key: np.concatenate([item[key] for item in items]) for key in ("actions", "rewards", "dones")}
    for group in ("obs", "next_obs"):
        arrays |= {f"{group}/{key}": np.concatenate([item[group][key] for item in items]) for key in keys}
    return arrays


def main():
    library, root, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    for name in names:
        try:
            np.savez(root / f"{name}.npz", **globals()[library](root, name))
            print("RESULT", json.dumps({name: ""}), flush=True)
        except Exception:
            print("RESULT", json.dumps({name: traceback.format_exc()[-1500:]}), flush=True)


main()
