"""Importing is all or nothing: a failed import leaves no store, a failed append leaves the store as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from offrl.errors import InvalidEpisode, InvalidInput, StoreExists, StoreLocked, StoreNotFound
from offrl_store import EpisodeStore, check
from offrld.importers import import_into, open_source


def test_progress_and_messages_are_told(flat, tmp_path):
    seen, lines = [], []
    store = import_into(flat, tmp_path / "store", progress=lambda done, total: seen.append((done, total)), message=lines.append)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert lines == ["the file declares no action bounds: the range of the data is used"]
    assert len(store) == 3 and store.metadata["source"] == {"format": "npz", "file": "arrays"}


def test_an_opened_source_can_be_imported(flat, tmp_path):
    assert len(import_into(open_source(flat), tmp_path / "store")) == 3


def test_a_destination_that_exists_is_refused_and_kept(flat, tmp_path):
    import_into(flat, tmp_path / "store")
    with pytest.raises(StoreExists, match="already exists"):
        import_into(flat, tmp_path / "store")
    assert len(EpisodeStore.open(tmp_path / "store")) == 3
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreExists):
        import_into(flat, tmp_path / "file")
    (tmp_path / "folder").mkdir()
    assert len(import_into(flat, tmp_path / "folder")) == 3


def test_an_append_adds_the_episodes_behind_the_others(flat, tmp_path, same_episodes):
    first = import_into(flat, tmp_path / "store")
    snapshot = first.snapshot()
    store = import_into(flat, tmp_path / "store", append=True)
    assert len(store) == 6 and store.transition_count == 2 * first.transition_count
    same_episodes(store.episodes[3:], store.episodes[:3])
    assert EpisodeStore.open(tmp_path / "store", snapshot).snapshot() == snapshot
    assert check(tmp_path / "store") == []


def test_an_append_needs_a_store_with_the_same_fields(flat, tmp_path):
    with pytest.raises(StoreNotFound):
        import_into(flat, tmp_path / "nothing", append=True)
    import_into(flat, tmp_path / "store")
    for change, part in (
        (
            {"observations": np.zeros((10, 4), np.float32)},
            r"'observation' is float32 \(4,\) in the source and float32 \(3,\) in the dataset",
        ),
        ({"observations": np.zeros((10, 3))}, "'observation' is float64"),
        ({"actions": np.zeros(10, int)}, r"'action' is discrete int64 \(\) in the source and float32 \(2,\) in the dataset"),
        ({"observations": {"a": np.zeros((10, 3), np.float32)}}, "the source has the fields observation.a, action, reward"),
    ):
        with pytest.raises(InvalidInput, match=part):
            import_into({**flat, **change}, tmp_path / "store", append=True)
    assert len(EpisodeStore.open(tmp_path / "store")) == 3


@pytest.mark.parametrize("append", [False, True])
def test_an_error_in_the_last_episode_leaves_nothing_of_the_others(flat, tmp_path, append):
    if append:
        import_into(flat, tmp_path / "store")
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    bad = {**flat, "observations": flat["observations"].copy()}
    bad["observations"][9, 2] = np.nan
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offrld.importers.columns.BLOCK_ROWS", 2)  # so that the first episodes are read and written before the error
        with pytest.raises(InvalidEpisode, match=r"observations\[9, 2\] is nan"):
            import_into(bad, tmp_path / "store", append=append, progress=lambda done, total: seen.append(done))
    assert seen == [1, 2]
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == sizes
    if append:
        assert check(tmp_path / "store") == []
        assert len(import_into(flat, tmp_path / "store", append=True)) == 6


def test_an_append_outside_the_inferred_bounds_says_how_to_get_others(flat, tmp_path):
    import_into(flat, tmp_path / "store")
    with pytest.raises(InvalidEpisode, match="outside the bounds") as caught:
        import_into({**flat, "actions": flat["actions"] * 2}, tmp_path / "store", append=True)
    assert "--option action_low=... --option action_high=..." in caught.value.hint
    assert len(EpisodeStore.open(tmp_path / "store")) == 3


def test_an_append_says_that_other_bounds_of_its_actions_are_not_kept(flat, tmp_path):
    given = flat | {"action_low": np.array([-1.0, -1.0]), "action_high": np.array([1.0, 1.0])}
    import_into(given, tmp_path / "store")
    lines = []
    import_into(given, tmp_path / "store", append=True, message=lines.append)
    assert not any("keeps its" in line for line in lines)
    store = import_into(given | {"action_high": np.array([2.0, 1.0])}, tmp_path / "store", append=True, message=lines.append)
    assert any("the source declares actions within" in line and "the dataset keeps its" in line for line in lines)
    assert store.schema.action.high.tolist() == [1, 1]


def test_an_append_while_another_writes_is_refused(flat, tmp_path):
    store = import_into(flat, tmp_path / "store")
    with store.writer(), pytest.raises(StoreLocked):
        import_into(flat, tmp_path / "store", append=True)
    assert len(import_into(flat, tmp_path / "store", append=True)) == 6


def test_an_interrupt_leaves_nothing(flat, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_into(flat, tmp_path / "store", progress=interrupt)
    assert os.listdir(tmp_path) == []


KILLED = """
import os, signal, sys
from offrld.importers import import_into
def progress(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
import_into(sys.argv[1], sys.argv[2], append=True, progress=progress)
"""


def test_an_append_that_is_killed_adds_nothing(flat, tmp_path):
    store = import_into(flat, tmp_path / "store")
    np.savez(tmp_path / "more.npz", **flat)
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "more.npz", store.path], check=False).returncode == -signal.SIGKILL
    assert len(EpisodeStore.open(store.path)) == 3
    assert len(import_into(tmp_path / "more.npz", store.path, append=True)) == 6
    assert check(store.path) == []


FULL = """
import resource, signal, sys
from offrl.errors import DiskFull
from offrld.importers import import_into
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))  # what the system says then is treated as a full disk
try:
    import_into(sys.argv[1], sys.argv[2], append=sys.argv[3] == "True")
except DiskFull as error:
    print(error, "|", error.hint)
"""


@pytest.mark.parametrize("append", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(flat, tmp_path, append):
    np.savez(tmp_path / "large.npz", **{key: np.repeat(value, 1000, axis=0) for key, value in flat.items() if key != "timeouts"})
    if append:
        import_into(flat, tmp_path / "store")
    sizes = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    command = [sys.executable, "-c", FULL, tmp_path / "large.npz", tmp_path / "store", str(append)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"no space left to write {tmp_path / 'store'}") and "nothing was" in done.stdout
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == sizes
