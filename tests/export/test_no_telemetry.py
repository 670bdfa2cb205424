"""onnxruntime sends no telemetry once this project is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offrl.policy import Policy

CHILD = """
import sys
{imports}
import onnxruntime
onnxruntime.InferenceSession(sys.argv[1])
"""


@pytest.mark.parametrize("imports", ["import offrl", "import offrld", "import offrld.export.onnx", ""])
def test_running_a_policy_leaves_no_telemetry_file(imports: str, policy_file: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", CHILD.format(imports=imports), str(policy_file)], env=environment, check=True, timeout=120)
    left = [path for path in home.rglob("*") if path.is_file()]
    if imports:
        assert left == []
    elif not left:
        pytest.skip("this onnxruntime has no telemetry")


@pytest.fixture(scope="module")
def policy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    import offrld
    from offrld.importers import import_into

    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.normal(size=(40, 3)).astype("f4"),
        "actions": generator.uniform(-1, 1, (40, 1)).astype("f4"),
        "rewards": np.ones(40, "f4"),
        "terminals": np.arange(40) % 10 == 9,
    }
    folder = tmp_path_factory.mktemp("policy")
    data, path = import_into(arrays, folder / "store"), folder / "policy.onnx"
    offrld.train("bc", data, steps=1, config={"batch_size": 8}, threads=1).export(path)
    assert Policy(path).act(np.zeros(3, "f4")).shape == (1,)
    return path
