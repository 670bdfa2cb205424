"""docs/recording.md as one program: two spools come of it."""

from __future__ import annotations

import re
from pathlib import Path

from offrl.recording import Spool
from offrl_store import EpisodeStore

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recording.md"


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    for folder, episodes in (("spool", 3), ("played", 2)):
        with Spool(folder) as spool:
            stores = [EpisodeStore.open(path) for _, path in spool.ready()]
        assert sum(map(len, stores)) == episodes
