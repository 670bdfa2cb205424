"""The short run of the kill harness (`kills`); `make test-reliability` runs the long one."""

from __future__ import annotations

import pytest
from kills import storm, undisturbed
from living_service import short_folder
from workload import kinds


def test_nothing_acknowledged_is_lost_when_daemon_and_workers_are_killed_at_random_moments() -> None:
    with short_folder() as folder:
        jobs = kinds(count=1)
        report = storm(folder, jobs, undisturbed(folder, jobs), daemon_kills=3, worker_kills=1, seed=2, crowd=1)
    assert report.problems == []
    assert (report.daemon_kills, report.worker_kills) == (3, 1)
    assert report.jobs > 0 and report.imports > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_nothing_acknowledged_is_lost_over_many_kills(seed: int) -> None:
    with short_folder() as folder:
        jobs = kinds(scale=3)
        report = storm(folder, jobs, undisturbed(folder, jobs), daemon_kills=50, worker_kills=20, seed=seed)
    print(vars(report))
    assert report.problems == []
    assert report.jobs > 0
