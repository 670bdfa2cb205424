"""Sources damaged at random places: what comes is an error of ours on one line, or episodes; never another exception.

HDF5 is left out: its library itself can crash on damaged files, which ends a worker and not the service.
"""

from __future__ import annotations

import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offrl.errors import OffrlError
from offrld.importers import open_source

REAL = {
    "torchrl": "torchrl-pendulum", "gen_dgrl": "gen-dgrl-coinrun", "lerobot": "lerobot-v3-images",
    "minari": "minari-arrow/pendulum/replay-v0",
}  # fmt: skip
TABLE = {"obs_0": list(range(90)), "act_0": [i % 3 for i in range(90)], "reward": [0.5] * 90, "episode": [i // 9 for i in range(90)]}


def damage(raw: bytearray, chance: random.Random) -> bytes:
    """Cut, with other bytes here and there, with a part that is another, or with one wrong byte in the head."""
    kind = chance.randrange(4) if raw else 0
    if kind == 0:
        return bytes(raw[: chance.randrange(len(raw) + 1)])
    if kind == 1:
        for _ in range(chance.randrange(1, 20)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
    elif kind == 2:
        start = chance.randrange(len(raw))
        raw[start : start + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(200))
    else:
        raw[chance.randrange(min(len(raw), 600))] = chance.randrange(256)
    return bytes(raw)


@pytest.mark.parametrize("format", [*REAL, "npz", "csv", "parquet"])
def test_damage_anywhere_is_an_error_of_ours_or_does_no_harm(request, tmp_path, format):
    if format in REAL:
        source = request.getfixturevalue("shared_data") / "formats" / REAL[format]
    else:
        source = tmp_path / "source"
        source.mkdir()
        if format == "npz":
            arrays = {"observations": np.zeros((90, 3)), "actions": np.arange(90) % 3, "rewards": np.zeros(90)}
            np.savez_compressed(source / "t.npz", **arrays, terminals=np.arange(90) % 9 == 8, env_id="Unheard-v0")
        elif format == "csv":
            lines = [",".join(map(str, row)) for row in zip(*TABLE.values(), strict=True)]
            (source / "t.csv").write_text("\n".join([",".join(TABLE), *lines]))
        else:
            pq.write_table(pa.table(TABLE), source / "t.parquet", row_group_size=30)
    chance = random.Random(1)
    outcomes = set()
    for number in range(40):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, copy_function=shutil.copyfile)
        for each in (copy, *copy.rglob("*")):
            each.chmod(0o755)
        file = chance.choice(sorted(each for each in copy.rglob("*") if each.is_file()))
        file.write_bytes(damage(bytearray(file.read_bytes()), chance))
        try:
            with open_source(copy if format in REAL else file, format, skip_bad=number % 2 == 1) as opened:
                outcomes.add(sum(episode.steps for episode in opened.episodes) > 0)
        except OffrlError as error:
            assert error.exit_status == 2 and error.hint and "\n" not in str(error), (number, file)
            outcomes.add("refused")
    assert "refused" in outcomes and (True in outcomes or format == "csv")  # most damage to a text shows
