"""Round trips with the libraries that own the formats, over the grid of `cases`: they read what we write, and we read what they write.

They live in two environments of their own (`make test-peers`), named by PEER and PEER_B: see the Makefile.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cases import FIELDS, same, store, values

from offrld.importers import export_dataset, import_into

HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.slow

LIBRARIES = {"minari": "a", "torchrl": "a", "d3rlpy": "a", "lerobot": "b", "robomimic": "b"}
FOLDERS = {"a": ("PEER", ".venv-peers-a"), "b": ("PEER_B", ".venv-peers-b")}

#: What a library itself does not take, however it is written: case -> a part of what it says.
THEIR_LIMITS = {
    ("lerobot", "uint64"): "Overflow when unpacking long long",
    ("torchrl", "uint64"): "not implemented for 'UInt64'",  # torch writes none into a buffer; ours are read
}


def python(side: str) -> str:
    """The interpreter of an environment; skips where there is none."""
    variable, folder = FOLDERS[side]
    made = HERE.parents[1] / folder / "bin" / "python"
    found = os.environ.get(variable) or (str(made) if made.exists() else "")
    if not found:
        pytest.skip(f"{variable} is unset and there is no {folder}: `make test-peers` makes it")
    return found


def file_name(library: str, case: str) -> str:
    plain = case.replace(" ", "-")
    return f"{plain}-v0" if library == "minari" else f"{plain}.h5" if library in ("d3rlpy", "robomimic") else plain


@pytest.fixture(scope="module")
def seen(request, tmp_path_factory):
    """``seen(library)``: the folder in which it has read every case, and what it said of each ("" where it did)."""
    done: dict[str, tuple[Path, dict[str, str], dict]] = {}

    def run(library: str):
        if library not in done:
            interpreter = python(LIBRARIES[library])
            root = tmp_path_factory.mktemp(library)
            made = {case: store(case, root / "made" / case, final=library not in ("lerobot", "d3rlpy")) for case in mkdir(root)}
            for case, each in made.items():
                export_dataset(each, root / file_name(library, case), library)
            home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hf"), "HF_DATASETS_CACHE": str(root / "hf" / "cache")}
            command = [interpreter, HERE / f"peer_{LIBRARIES[library]}.py", library, root, *(file_name(library, case) for case in made)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | home)
            said: dict[str, str] = {}
            for line in ended.stdout.splitlines():
                if line.startswith("RESULT "):
                    said |= json.loads(line[7:])
            assert len(said) == len(made), ended.stderr[-3000:]
            done[library] = root, said, made
        return done[library]

    return run


def mkdir(root: Path) -> list[str]:
    (root / "made").mkdir()
    return list(FIELDS)


@pytest.mark.parametrize("case", FIELDS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_we_write_is_read_by_its_library_and_comes_back(seen, tmp_path, library, case):
    root, said, made = seen(library)
    name = file_name(library, case)
    limit = THEIR_LIMITS.get((library, case))
    if limit is not None:
        assert limit in said[name]
        return
    assert not said[name], said[name]
    with np.load(root / f"{name}.npz") as arrays:
        CHECKS[library](dict(arrays), made[case], root / name, tmp_path)


def rows(episodes, key: str, steps=None) -> np.ndarray:
    return np.concatenate([values(each)[key][: each.steps if steps is None else steps(each)] for each in episodes])


def equal(found: np.ndarray, due: np.ndarray) -> None:
    np.testing.assert_array_equal(found.reshape(due.shape), due)


def fields(made) -> dict[str, str]:
    """Observation fields -> the key of their values."""
    observation = made.schema.observation
    return {name: f"observation.{name}" for name in observation} if isinstance(observation, dict) else {"": "observation"}


def minari(arrays, made, path, tmp_path):
    for i, episode in enumerate(made.episodes):
        for name, key in fields(made).items():
            found, due = arrays[f"{i}/observation/{name}".rstrip("/")], values(episode)[key]
            assert (found.dtype, found.shape) == (due.dtype, due.shape)
            np.testing.assert_array_equal(found, due)
        equal(arrays[f"{i}/action"], episode.action)
        equal(arrays[f"{i}/reward"], episode.reward)
        assert (bool(arrays[f"{i}/terminated"]), bool(arrays[f"{i}/truncated"])) == (episode.terminated, not episode.terminated)
    for form in ("hdf5", "parquet"):
        again = import_into(path.parent / path.name.replace("-v0", f"-{form}-v0"), tmp_path / form)
        for ours, theirs in zip(again.episodes, made.episodes, strict=True):
            found, due = values(ours), values(theirs)
            assert ours.terminated == theirs.terminated and {key for key in due if not key.startswith("extra")} <= found.keys()
            for key in due.keys() & found.keys():
                np.testing.assert_array_equal(found[key], due[key], err_msg=f"{form} {key}")
        assert again.schema.action == made.schema.action


def torchrl(arrays, made, path, tmp_path):
    keys = json.loads((path / "offrl.json").read_text())["keys"]
    for column, key in keys.items():
        found, due = arrays[key], rows(made.episodes, column)
        assert found.dtype == due.dtype
        equal(found, due)
        if column.startswith("observation"):
            shifted = np.concatenate([values(each)[column][1:] for each in made.episodes])
            equal(arrays[f"next/{key}"], shifted)
    equal(arrays["action"], rows(made.episodes, "action"))
    equal(arrays["next/reward"], rows(made.episodes, "reward"))
    again = import_into(path.parent / f"{path.name}-back", tmp_path / "back")
    assert [(each.steps, each.terminated) for each in again.episodes] == [(each.steps, each.terminated) for each in made.episodes]
    for ours, theirs in zip(again.episodes, made.episodes, strict=True):
        np.testing.assert_array_equal(ours.action, theirs.action)


def d3rlpy(arrays, made, path, tmp_path):
    kept = [each for each in made.episodes if each.terminated or each.steps > 1]  # d3rlpy forgets an episode without a transition
    for i, episode in enumerate(kept):
        for place, key in enumerate(fields(made).values()):
            one = isinstance(made.schema.observation, dict)
            found, due = arrays[f"{i}/observation/{place}" if one else f"{i}/observation"], values(episode)[key]
            assert found.dtype == due.dtype
            equal(found, due)
        equal(arrays[f"{i}/action"], episode.action)
        equal(arrays[f"{i}/reward"], episode.reward)
        assert bool(arrays[f"{i}/terminated"]) == episode.terminated
    again = import_into(path.parent / f"{path.name}-back", tmp_path / "back")
    assert [(each.steps, each.terminated) for each in again.episodes] == [(each.steps, each.terminated) for each in kept]


def lerobot(arrays, made, path, tmp_path):
    keys = json.loads((path / "meta" / "offrl.json").read_text())["keys"]
    features = json.loads((path / "meta" / "info.json").read_text())["features"]
    for column, key in (keys | {"action": "action", "reward": "next.reward"}).items():
        due = rows(made.episodes, column)
        found = np.round(arrays[key] * 255).astype(np.uint8) if features[key]["dtype"] == "image" else arrays[key]
        equal(found, due if due.dtype != np.float64 else due.astype(np.float32))  # it gives float32, whatever the file holds
    again = import_into(path, tmp_path / "again")  # with the episode that LeRobot recorded
    assert len(again) == len(made) + 1 and again.episodes[len(made)].steps == 2
    same([again.episodes[i] for i in range(len(made))], made.episodes)


def robomimic(arrays, made, path, tmp_path):
    for name, key in fields(made).items():
        where = name.replace(".", "/") or "observation"
        where = where if f"obs/{where}" in arrays else name
        due, found = rows(made.episodes, key), arrays[f"obs/{where}"]
        if due.ndim == 4:  # robomimic gives its own layout
            found = found if found.shape[1:] == due.shape[1:] else np.moveaxis(found, -1, 1)
        equal(found, due)
    equal(arrays["actions"], rows(made.episodes, "action"))
    equal(arrays["rewards"], rows(made.episodes, "reward"))


CHECKS = {"minari": minari, "torchrl": torchrl, "d3rlpy": d3rlpy, "lerobot": lerobot, "robomimic": robomimic}
