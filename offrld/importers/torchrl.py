"""Import TorchRL: a folder that ``ReplayBuffer.dumps`` wrote over a ``LazyMemmapStorage``, read without torch.

``storage/`` holds a raw file ``KEY.memmap`` per leaf, with as many rows as the buffer can hold; nested keys are in folders of their own,
and ``meta.json`` in each folder has dtypes and shapes. ``storage_metadata.json`` has the number of filled rows, ``writer/metadata.json``
the write position of the ring.

``observation`` and every other leaf that ``next`` also has are observations, except those that transforms carry along (``step_count``,
``episode_reward``, ...). Further leaves: ``action``; ``next/reward``; ``next/done``, ``next/terminated``, ``next/truncated``. All others
are kept with each step. Integer actions of several columns are one-hot (TorchRL's default for discrete actions). Rows are read in the order
of writing. Interleaved trajectories are separated by ``collector/traj_ids``, environments side by side (two dimensions) by environment.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from offrl_store.errors import EmptyStore, InvalidInput
from offrl_store.schema import DTYPES
from offrld.importers.bad_data import BadRow
from offrld.importers.columns import Column, check_scalar_rows
from offrld.importers.described import NAME as MARK
from offrld.importers.described import Described
from offrld.importers.flat import Columns, FlatArrays, flat_source
from offrld.importers.hdf5 import listed
from offrld.importers.reading import read_json
from offrld.importers.source import BadEpisodes, Format, Source, field_names, named_keys
from offrld.importers.spaces import ActionSpace, Box, choices

NEEDS = "a folder with storage/meta.json and .memmap files: observation, action, next/observation, next/reward, next/done"
FLAGS = ("done", "terminated", "truncated", "is_init")
TRAJECTORIES = ("collector/traj_ids", "traj_ids")  # numbers of trajectories
MASK = "collector/mask"  # false for the padding of split_trajs

#: Keys that StepCounter, TrajCounter, TargetReturn and Timer write into the step and into next; RewardSum writes episode_...
CARRIED = ("step_count", "traj_count", "target_return", "time_policy", "time_step", "time_reset")


class Ordered:
    """Rows of an array in another order, as the data of a column. Row i is the array's row ``order[i]``."""

    def __init__(self, data: Any, order: np.ndarray) -> None:
        self._data, self._order = data, order
        self.shape, self.dtype = (len(order), *data.shape[1:]), data.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        at = self._order[rows]
        if len(at) and at[-1] - at[0] == len(at) - 1 and (np.diff(at) == 1).all():  # the common case: a slice
            return self._data[at[0] : at[-1] + 1]
        return self._data[at]


class OneHot:
    """One-hot rows as the index of their 1, as the data of a column."""

    dtype = np.dtype(np.int64)

    def __init__(self, data: Any, file: str) -> None:
        self._data, self._file, self.shape = data, file, (data.shape[0],)

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = np.asarray(self._data[rows])
        wrong = np.flatnonzero(((block != 0).sum(1) != 1) | (block.sum(1, dtype=np.int64) != 1))
        if len(wrong):
            row = rows.start + int(wrong[0])
            raise BadRow(
                f"{self._file}: action[{row}] is {block[wrong[0]].tolist()}, which is not a one-hot choice",
                row,
                hint="several discrete actions per step are not supported",
            )
        return block.argmax(1)


def storage_folder(path: Path) -> Path | None:
    """Return the folder of the arrays, given a dumped buffer or that folder itself; None if there is none."""
    for folder in (path / "storage", path):
        if (folder / "meta.json").is_file() and (folder / "storage_metadata.json").is_file():
            return folder
    return None


def detect(path: Path) -> bool:
    return path.is_dir() and storage_folder(path) is not None


def open_folder(path: Path, bad: BadEpisodes, *, observation: Any = None, drop: Any = (), environments: Any = None) -> Source:
    """Open a dumped buffer. Raises `InvalidInput` if the folder is not one, or if a file is missing or cut."""
    folder, name = storage_folder(path), path.resolve().name
    if folder is None:
        raise InvalidInput(f"{path} is not a dumped replay buffer", hint=f"needed: {NEEDS}")
    if environments is not None and (not isinstance(environments, int) or isinstance(environments, bool) or environments < 1):
        raise InvalidInput(f"environments is {environments!r}", hint="pass the number of environments whose rows are interleaved")
    lead = _json(folder / "meta.json", name).get("shape")
    if not isinstance(lead, list) or len(lead) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in lead):
        raise InvalidInput(f"{name}: the storage has the shape {lead}", hint="one or two dimensions before those of a step are read")
    others: list[str] = []
    arrays = _leaves(folder, "", tuple(lead), name, others)
    missing = [key for key in ("action", "next/reward") if key not in arrays]
    if missing or not ({"next/done", "next/terminated"} & arrays.keys()):
        raise InvalidInput(f"{name} holds no {(missing or ['next/done'])[0]!r} (it holds {listed(arrays)})", hint=f"needed: {NEEDS}")
    messages: list[str] = []
    order, seams = _order(folder, tuple(lead), arrays, name, environments, messages)
    leaves = {key: Ordered(array, order) for key, array in arrays.items()}
    described = Described.read(folder.parent / f"{MARK}.json")
    dropped = named_keys("drop", drop, leaves, name)
    observed, carried = _observed(leaves, observation, dropped, described, name)
    column = lambda key: Column(name, key, leaves[key])  # noqa: E731
    terminals, timeouts = _ends(leaves, name, seams, messages)
    used = {"action", *TRAJECTORIES, MASK, *observed, *dropped}
    recorded = set(described.extra) if described is not None else set()
    extra = [
        key
        for key in leaves
        if key not in used
        and not key.startswith("next/")
        and (key in recorded or (key.split("/")[-1] not in FLAGS and key not in ("reward", "index", "_weight")))
    ]
    others += [key for key in leaves if key.startswith("next/") and key[5:] not in (*observed, *FLAGS, "reward", *extra)]
    names, extras = field_names(observed, messages, "observation"), field_names(extra, messages, "extra field")
    fields = {key: column(key) for key in observed}
    following = {key: Column(name, f"next/{key}", leaves[f"next/{key}"]) for key in observed}
    kept = {extras[key]: column(key) for key in extra}
    observations: Columns = {names[key]: each for key, each in fields.items()}
    next_observations: Columns | None = {names[key]: each for key, each in following.items()}
    if observed == ["observation"]:
        observations, next_observations = fields["observation"], following["observation"]
    if described is not None and (recorded_fields := described.fields(fields)) is not None:
        observations, next_observations = recorded_fields, described.fields(following)
        kept = described.extras({key: column(key) for key in extra})
    _say(observed, carried, extra, sorted({*others, *dropped}), messages)
    action, space = _action(leaves["action"], name)
    if described is not None and described.space is not None:
        space = described.space
        if isinstance(space, Box):  # a vector of whole numbers, not one-hot choices
            action = column("action")
    return flat_source(
        FlatArrays(observations, action, column("next/reward"), terminals, timeouts, next_observations, extra=kept),
        bad,
        format="torchrl",
        env_id=described.env_id if described else None,
        space=space,
        attributes={},
        messages=messages,
    )


def _order(
    folder: Path, lead: tuple[int, ...], arrays: dict[str, np.ndarray], name: str, environments: int | None, messages: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in time order of each trajectory, and flags ``[N]`` of the rows after which another trajectory certainly begins.

    A storage of two dimensions has time before environments (``ndim=2``), or a piece of a trajectory in each row.
    """
    size, width = lead[0], math.prod(lead[1:])
    filled = _json(folder / "storage_metadata.json", name).get("len")
    if not isinstance(filled, int) or not 0 <= filled <= size * width:
        raise InvalidInput(
            f"{name}: storage_metadata.json has the length {filled!r} for {size * width} rows", hint="the folder is damaged; dump it again"
        )
    if not filled:
        raise EmptyStore(f"{name} holds no steps", hint="dump a buffer with at least one episode")
    writer = folder.parent / "writer" / "metadata.json"
    state = _json(writer, name) if writer.is_file() else {}
    written = state.get("write_count", state.get("cursor"))
    written = min(written, size) if isinstance(written, int) and written > 0 else size
    apart = width > 1 and filled == written * width  # the length counts steps, not pieces: environments are side by side
    count = filled // width if apart else filled
    if count > size or (apart and filled % width):
        raise InvalidInput(
            f"{name}: storage_metadata.json has the length {filled} for {size} rows", hint="the folder is damaged; dump it again"
        )
    cursor = state.get("cursor", 0)
    first = cursor if count == size and isinstance(cursor, int) and 0 <= cursor < size else 0
    if first:
        messages.append("the buffer is a ring that has wrapped around: its first episode may lack its first steps")
    rows = (first + np.arange(count)) % size
    grid = rows[:, None] * width + np.arange(width)
    if environments is not None and width == 1:
        order = np.concatenate([grid[i::environments, 0] for i in range(min(environments, count))])
        runs = [len(range(i, count, environments)) for i in range(min(environments, count))]
    else:
        order, runs = (grid.T if apart else grid).reshape(-1), [count] * width if apart else [count * width]
    seams = np.zeros(len(order), bool)
    seams[np.cumsum(runs) - 1] = True
    if MASK in arrays and arrays[MASK].dtype == bool and arrays[MASK].size == size * width:
        valid = arrays[MASK].reshape(-1)[order]
        if not valid.all():
            messages.append(f"{int((~valid).sum())} rows are padding ({MASK}): left out")
            run = np.cumsum(seams) - seams
            order, run = order[valid], run[valid]
            if not len(order):
                raise EmptyStore(f"{name} holds no steps: all its rows are padding", hint="dump a buffer with at least one episode")
            seams = np.append(run[1:] != run[:-1], True)
    trajectory = next((key for key in TRAJECTORIES if key in arrays), None)
    if trajectory is not None:
        column = Column(name, trajectory, arrays[trajectory])
        check_scalar_rows(column)
        ids = column.data.reshape(-1)[order]
        run = np.cumsum(seams) - seams  # numbers may restart in each environment
        changes = np.append((ids[1:] != ids[:-1]) | (run[1:] != run[:-1]), True)
        if not (apart or environments is not None):
            begins, each = _trajectories(ids, _ended(arrays, size * width)[order])
            if changes.sum() > len(begins):
                messages.append(f"the rows of {len(begins)} trajectories are interleaved ({trajectory}): each is sorted by time")
                sort = np.argsort(begins[each], kind="stable")
                order, each = order[sort], each[sort]
                changes = np.append(each[1:] != each[:-1], True)
        seams = changes
    return order, seams


def _trajectories(ids: np.ndarray, ended: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each trajectory, and the trajectory of each row ``[N]``. A number after its end starts another trajectory."""
    by_id = np.argsort(ids, kind="stable")
    before = np.cumsum(ended[by_id]) - ended[by_id]  # ends so far: only differences within a number count
    lived = np.empty(len(ids), np.int64)
    lived[by_id] = before
    _, begins, each = np.unique(np.stack([ids.astype(np.int64), lived], 1), axis=0, return_index=True, return_inverse=True)
    return begins, each.reshape(-1)


def _ended(arrays: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Return whether an episode ends at each row, ``[rows]``, in the order of the files."""
    flags = [arrays[f"next/{key}"] for key in ("done", "terminated", "truncated") if f"next/{key}" in arrays]
    return np.logical_or.reduce([np.zeros(rows, bool), *(each.reshape(-1) != 0 for each in flags if each.size == rows)])


def _observed(
    leaves: dict[str, Any], chosen: Any, dropped: list[str], described: Described | None, name: str
) -> tuple[list[str], list[str]]:
    """Return the keys of observations, and the keys that only look like observations: the counts and sums of transforms."""
    paired = [key for key in leaves if not key.startswith("next/") and f"next/{key}" in leaves and key not in dropped]
    if chosen is not None:
        observed = named_keys("observation", chosen, paired, name)
        return observed, []
    if described is not None and set(described.observation) <= set(paired):
        return list(described.observation), []
    paired = [key for key in paired if key.split("/")[-1] not in FLAGS and key != "reward"]
    carried = [key for key in paired if _carried(key, leaves)]
    observed = [key for key in paired if key not in carried]
    if not observed:
        more = f"; option observation=KEY takes {', '.join(carried)} as such" if carried else ""
        raise InvalidInput(f"{name} holds no observation that next/ also has (it holds {listed(leaves)})", hint=f"needed: {NEEDS}{more}")
    return observed, carried


def _carried(key: str, leaves: dict[str, Any]) -> bool:
    """Return whether a transform or a recurrent policy carries a key from step to step; the environment does not observe it."""
    outer, _, last = key.rpartition("/")
    reward = "/".join(each for each in ("next", outer, last.removeprefix("episode_")) if each)
    return last in CARRIED or last.startswith("recurrent_state") or (last.startswith("episode_") and reward in leaves)


def _say(observed: list[str], carried: list[str], extra: list[str], others: list[str], messages: list[str]) -> None:
    messages.append(f"observation: {listed(observed)}" + (f"; kept with each step: {listed(extra)}" if extra else ""))
    if carried:
        messages.append(f"{listed(carried)}: written by a transform of TorchRL, so not an observation; option observation=KEY makes it one")
    if others:
        messages.append(f"not imported: {listed(others)}")


def _leaves(folder: Path, prefix: str, lead: tuple[int, ...], name: str, others: list[str]) -> dict[str, np.ndarray]:
    """Map every array below a folder into memory as ``[N, ...]``. Returns key (``outer/inner``) -> array. Raises `InvalidInput`."""
    arrays: dict[str, np.ndarray] = {}
    for key, described in _json(folder / "meta.json", name).items():
        path = f"{prefix}{key}"
        if "/" in key or key.startswith(".") or not isinstance(described, dict):
            continue
        if "dtype" not in described:
            if (folder / key / "meta.json").is_file():
                arrays |= _leaves(folder / key, f"{path}/", lead, name, others)
            else:
                others.append(path)
            continue
        dtype, shape = str(described["dtype"]).removeprefix("torch."), described.get("shape")
        sizes = tuple(shape) if isinstance(shape, list) and all(isinstance(n, int) and n > 0 for n in shape) else ()
        if dtype not in DTYPES or described.get("is_nested") or not sizes or sizes[: len(lead)] != lead:
            others.append(path)
            continue
        file = folder / f"{key}.memmap"
        size = np.dtype(dtype).itemsize * math.prod(sizes)
        if not file.is_file() or file.stat().st_size < size:
            present = file.stat().st_size if file.is_file() else 0
            raise InvalidInput(f"{name}: {path}.memmap has {present} bytes; expected {size}", hint="copy the folder again")
        arrays[path] = np.memmap(file, np.dtype(dtype), "r", shape=sizes).reshape(-1, *sizes[len(lead) :])
    return arrays


def _ends(leaves: dict[str, Ordered], name: str, seams: np.ndarray, messages: list[str]) -> tuple[Column, Column]:
    """Return flags of terminations and of truncations, both ``[N]``."""
    flags = {key: Column(name, f"next/{key}", leaves[f"next/{key}"]) for key in FLAGS if f"next/{key}" in leaves}
    rows = len(seams)
    read = {key: each.read_flags(0, rows) for key, each in flags.items()}
    none = np.zeros(rows, bool)
    if "terminated" not in read:
        messages.append("there is no next/terminated: the task counts as ended if next/done is set and next/truncated is not")
    terminated = read.get("terminated", read.get("done", none) & ~read.get("truncated", none))
    ends = terminated | read.get("truncated", none) | read.get("done", none)
    seams = seams.copy()
    seams[-1] = ends[-1]  # the newest episode may continue beyond the data
    return Column(name, "next/terminated", terminated), Column(name, "next/truncated", ends | seams)


def _action(data: Ordered, name: str) -> tuple[Column, ActionSpace | None]:
    """Return the actions, and their space if they are one-hot: as many choices as columns."""
    if data.dtype.kind in "biu" and len(data.shape) == 2 and data.shape[1] > 1:
        return Column(name, "action", OneHot(data, name)), choices(data.shape[1], 0, "declared", name)
    return Column(name, "action", data), None


def _json(path: Path, name: str) -> dict[str, Any]:
    value = read_json(path, f"{name}: {path.name}")
    if not isinstance(value, dict):
        raise InvalidInput(f"{name}: {path.name} is not a JSON object", hint="the folder is damaged; dump the buffer again")
    return value


FORMAT = Format(
    "torchrl",
    "folder of TorchRL's ReplayBuffer.dumps with memory maps",
    NEEDS,
    detect,
    open_folder,
    {
        "observation": "the keys that are observations",
        "drop": "keys to leave out",
        "environments": "number of environments whose rows are interleaved, if there are no traj_ids",
    },
)
