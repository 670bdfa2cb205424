"""Fixtures that start workers, on datasets that other workers have imported."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worker_process import DEADLINE_S, WorkerProcess


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs of policies that earlier tests traced; each state folder starts with them and adds its own."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def start(tmp_path: Path, templates: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers in the state folder ``tmp_path``; all are gone after the test."""
    workers: list[WorkerProcess] = []
    cache = tmp_path / "cache" / "policies"
    shutil.copytree(templates, cache)

    def start(job: str, spec: dict[str, Any], **options: Any) -> WorkerProcess:
        workers.append(WorkerProcess(options.pop("state", tmp_path), job, spec, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
    shutil.copytree(cache, templates, dirs_exist_ok=True)


@pytest.fixture
def upload(tmp_path: Path) -> Callable[..., str]:
    """Return a function that puts files where the daemon puts a finished upload, and returns the upload's id."""

    def upload(*sources: Path, name: str = "upload-1") -> str:
        files = tmp_path / "uploads" / name / "files"
        files.mkdir(parents=True)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, files / source.name)
            else:
                shutil.copy(source, files / source.name)
        return name

    return upload


@pytest.fixture(scope="session")
def imported(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Datasets made by import workers, once: name -> {"path", "snapshot"}."""
    state = tmp_path_factory.mktemp("imported")
    datasets = {}
    for name, file in (("pendulum", "pendulum-replay.hdf5"), ("cartpole", "cartpole-replay.hdf5")):
        worker = WorkerProcess(
            state, f"import-{name}", {"kind": "import", "dataset": name, "path": str(shared_data / file)}, import_roots=[str(shared_data)]
        )
        try:
            assert worker.end()["state"] == "succeeded"
        finally:
            worker.close()
        datasets[name] = {"path": state / "datasets" / name, "snapshot": worker.of_type("dataset")[0]["dataset"]["snapshot"]}
    return datasets


@pytest.fixture
def train(imported: dict[str, dict[str, Any]], tmp_path: Path, start: Callable[..., WorkerProcess]) -> Callable[..., WorkerProcess]:
    """Starts a train worker on an imported dataset: ``train("job", "bc", "pendulum", steps=...)``."""

    def train(
        job: str,
        algorithm: str,
        dataset: str,
        *,
        attempt: int = 1,
        state: Path = tmp_path,
        environment: Any = None,
        start_message: dict[str, Any] | None = None,
        **spec: Any,
    ) -> WorkerProcess:
        target = state / "datasets" / dataset
        if not target.exists():
            shutil.copytree(imported[dataset]["path"], target)
        return start(
            job,
            {"kind": "train", "algorithm": algorithm, "dataset": dataset, "device": "cpu", "runner": "eager", **spec},
            attempt=attempt,
            snapshot=imported[dataset]["snapshot"],
            state=state,
            environment=environment or {},
            **(start_message or {}),
        )

    return train


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that polls a condition until it holds, with a deadline."""

    def wait_for(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, "the condition does not hold"
            time.sleep(0.005)
        return value

    return wait_for
