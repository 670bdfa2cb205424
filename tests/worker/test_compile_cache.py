"""What a compiled job leaves in the state folder spares the next one the compiler."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # a cold compilation takes a minute of one core


def entries(folder: Path) -> set[str]:
    """Every file of the cache but locks."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}


def test_a_second_compiled_job_compiles_nothing(train, tmp_path):
    cache = tmp_path / "cache" / "inductor"

    def finish(job: str, seed: int, batch_size: int) -> None:
        worker = train(job, "td3_bc", "pendulum", seeds=[seed], steps=20, runner="compile", config={"batch_size": batch_size})
        worker.deadline_s = 300.0
        assert worker.end()["state"] == "succeeded"

    finish("first", seed=0, batch_size=32)
    made = entries(cache)
    assert any(name.startswith("fxgraph") for name in made)

    finish("second", seed=1, batch_size=32)
    assert entries(cache) == made

    finish("third", seed=0, batch_size=48)
    assert entries(cache) > made, "another program is compiled"
