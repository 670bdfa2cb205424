"""docs/atari.md: its Python blocks as one program, on a folder of real play in the layout of the bucket."""

from __future__ import annotations

import re
from pathlib import Path

from offrld.importers.atari_export import write_replay

PAGE = Path(__file__).resolve().parents[2] / "docs" / "atari.md"


def test_the_blocks_of_the_page_run_one_after_the_other(played, tmp_path, monkeypatch):
    write_replay(played, tmp_path / "bucket", "breakout", epochs=50)
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(tmp_path / "bucket"))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        names["env"].close()
    assert names["observation"].shape == (1, 84, 84)
    assert len({names["store"].episode_metadata(i)["epoch"] for i in range(len(names["store"]))}) == 50
