"""The types of the client and the store, as a user's type checker sees the installed packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import offrl
import offrl_store

pytest.importorskip("mypy")

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import numpy as np

import offrl
from offrl_store import Episode, EpisodeStore, Field, Schema


def record(client: offrl.Client) -> None:
    with offrl.Recorder(client, "arm", action_low=-1.0, action_high=1.0) as recorder:
        recorder.begin(np.zeros(3))
        recorder.step(np.zeros(1), 1.0, np.ones(3), terminated=True)


def train(client: offrl.Client) -> offrl.Policy:
    job: offrl.Job = client.submit("td3_bc", dataset="arm", steps=1000, seeds=[0])
    info = job.wait()
    reveal_type(info)
    reveal_type(info.steps)
    return offrl.Policy(job.fetch("policy.onnx"))


def read(path: str) -> float:
    store = EpisodeStore.create(path, Schema(Field("float32", (3,)), Field("float32", (1,)), Field("float32")))
    with store.writer() as writer:
        number: int = writer.append(Episode(np.zeros((3, 3)), np.zeros((2, 1)), np.zeros(2), terminated=True))
    reveal_type(store.episodes[number])
    reveal_type(store.transitions(256, seed=0).sample())
    reveal_type(store.windows(32, 10, seed=0).sample())
    return float(store.returns.mean())


def wrong(client: offrl.Client) -> None:
    client.submit("td3_bc", dataset="arm", steps="a thousand")
"""

REVEALED = (".JobInfo", "int", "offrl_store.schema.Episode", "offrl_store.sampler.Batch", "offrl_store.windows.WindowBatch")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The interpreter of an environment that has the two packages in site-packages and shares all other packages of this one."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for package in (offrl, offrl_store):
        (site / package.__name__).symlink_to(Path(package.__path__[0]))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others) + "\n")
    return python


def test_a_user_s_program_is_checked_against_the_installed_client(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--no-error-summary", "--hide-error-context"]
    command += ["--cache-dir", str(tmp_path / "cache"), "--python-executable", str(installed), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path)
    notes = [line.partition("Revealed type is ")[2].strip('"') for line in done.stdout.splitlines() if "Revealed type" in line]
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert not done.stderr and len(notes) == len(REVEALED), done.stdout + done.stderr
    assert all(expected in note for expected, note in zip(REVEALED, notes, strict=True)), notes
    assert len(errors) == 1 and 'Argument "steps"' in errors[0] and "[arg-type]" in errors[0], done.stdout
    assert int(errors[0].split(":")[1]) == PROGRAM[: PROGRAM.index('"a thousand"')].count("\n") + 1


@pytest.mark.parametrize("package", [offrl, offrl_store])
def test_a_wheel_carries_the_marker_of_typed_packages(package) -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data[package.__name__] and (Path(package.__path__[0]) / "py.typed").is_file()
