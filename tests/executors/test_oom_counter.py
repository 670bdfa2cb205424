"""The kernel's out-of-memory counters, read from trees like those of cgroup v2, v1 and a machine without either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from offrld.executors.oom import OomCounter

TREES = {
    "v2": ("0::/system.slice/offrld.service\n", "sys/fs/cgroup/system.slice/offrld.service/memory.events", "low 0\noom 9\noom_kill {}\n"),
    "v1": ("5:cpu:/\n4:memory:/box/inner\n0::/\n", "sys/fs/cgroup/memory/box/inner/memory.oom_control", "under_oom 0\noom_kill {}\n"),
    "bare": ("0::/\n", "proc/vmstat", "nr_free_pages 7\noom_kill {}\n"),
}


@pytest.mark.parametrize("tree", TREES)
def test_a_kill_is_seen_once(tree: str, tmp_path: Path) -> None:
    groups, path, text = TREES[tree]
    (tmp_path / "proc/42").mkdir(parents=True)
    (tmp_path / "proc/42/cgroup").write_text(groups)
    (tmp_path / "proc/vmstat").write_text("oom_kill 3\n")
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text.format(3))
    counter = OomCounter(42, tmp_path)
    assert not counter.grown()
    file.write_text(text.format(4))
    if tree != "bare":
        (tmp_path / "proc/vmstat").write_text("oom_kill 3\n")
    assert counter.grown()
    assert not counter.grown()
    if tree != "bare":
        (tmp_path / "proc/vmstat").write_text("oom_kill 99\n")  # of others on the machine
        assert not counter.grown()
    file.unlink()
    assert not counter.grown()


def test_a_machine_without_counters_reports_no_kill(tmp_path: Path) -> None:
    assert not OomCounter(42, tmp_path).grown()
    assert not OomCounter(os.getpid()).grown()
