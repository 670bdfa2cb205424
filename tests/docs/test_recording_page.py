"""docs/recording.md runs as one program and leaves two spools."""

from __future__ import annotations

from pages import DOCS, run_page

from offrl.recording import Spool
from offrl_store import EpisodeStore


def test_the_blocks_of_the_page_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "recording.md", least=2)
    for folder, episodes in (("spool", 3), ("played", 2)):
        with Spool(folder) as spool:
            stores = [EpisodeStore.open(path) for _, path in spool.ready()]
        assert sum(map(len, stores)) == episodes
