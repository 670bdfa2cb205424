"""Policies as TorchScript files: a process with torch alone computes what onnxruntime does; a failed export leaves no file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from cheap_settings import FROM_DATA, cheap_settings
from test_export_observations import CONTINUOUS, DISCRETE, IMAGE, KINDS, SMALL, filled
from torch import nn

from offrl.errors import CheckFailed, InvalidInput
from offrl_store import Field
from offrld.algos import get
from offrld.export.torchscript import METADATA, export_torchscript
from offrld.inprocess.learner import Learner
from offrld.state.run_folder import RunFolder
from offrld.worker.policy_files import PolicyFiles

DOCS = Path(__file__).resolve().parents[2] / "docs" / "policy-file.md"
VECTOR = Field("float32", (4,))
PIXELS = {f"encoder.{name}": value for name, value in SMALL.items()}
ACTOR_AND_CRITIC = {f"{slot}.{name}": value for slot in ("actor_encoder", "critic_encoder") for name, value in SMALL.items()}
SCALED = {"observation_scaler": "standard"}
CASES = {
    "deterministic": ("td3_bc", VECTOR, SCALED),
    "squashed normal": ("sac", VECTOR, SCALED),
    "argmax of values": ("dqn", VECTOR, {}),
    "categorical": ("discrete_sac", VECTOR, {}),
    "quantiles": ("discrete_cql", VECTOR, {"q_function": "iqn"}),
    "bcq": ("bcq", VECTOR, {}),
    "plas": ("plas", VECTOR, {}),
    "pixel": ("discrete_cql", IMAGE, PIXELS),
    "stacked pixel": ("discrete_bc", IMAGE, {**PIXELS, "frame_stack": 3}),
    "dict": ("td3_bc", KINDS["camera and arm"], ACTOR_AND_CRITIC),
    "transformer": ("decision_transformer", VECTOR, {"reward_scaler": "multiply", "reward_scaler.multiplier": 0.1}),
    "discrete transformer": ("discrete_decision_transformer", KINDS["vectors"], {}),
}
BATCHES = (1, 40)

# A user's program with torch alone: it reads the metadata and passes the inputs in the order listed there.
PROGRAM = f"""
import json, sys
for package in ("offrld", "offrl", "offrl_store", "onnx", "onnxruntime"):
    sys.modules[package] = None  # an import of it fails
import numpy as np
import torch

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    files = {{{METADATA!r}: ""}}
    policy = torch.jit.load(folder + "/policy.pt", _extra_files=files)
    metadata = json.loads(files[{METADATA!r}])
    for batch in {BATCHES}:
        inputs = np.load(f"{{folder}}/inputs-{{batch}}.npz")
        out = policy(*(torch.from_numpy(inputs[entry["name"]]) for entry in metadata["inputs"]))
        out = out if isinstance(out, tuple) else (out,)
        np.savez(f"{{folder}}/out-{{batch}}.npz", **{{name: value.numpy() for name, value in zip(metadata["outputs"], out, strict=True)}})
"""


def moved(learner: Learner) -> Learner:
    """Add noise to the weights but not to the biases, so that the action depends on the observation."""
    random = torch.Generator().manual_seed(1)
    for name, value in learner.state.params.items():
        if name.endswith("weight"):
            value += 0.2 * torch.randn(value.shape, generator=random)
    return learner


def learner_of(name, store, **values) -> Learner:
    algorithm = get(name)
    return moved(Learner.create(algorithm, algorithm.configure({**cheap_settings(algorithm), **values}), store))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Map case -> onnxruntime's results, and the folder with those of a process with torch alone; it runs all cases."""
    dtypes = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(int64)": "i8", "tensor(uint8)": "u1"}
    results = {}
    for case, (name, observation, values) in CASES.items():
        folder = tmp_path_factory.mktemp("case")
        store = filled(folder / "store", observation, DISCRETE if get(name).actions == "discrete" else CONTINUOUS)
        files = PolicyFiles(learner_of(name, store, **values), RunFolder(folder / "run"), job="j7", dataset="d")
        file = files.export(0, "torchscript")
        file.rename(folder / "policy.pt")
        session = onnxruntime.InferenceSession(str(files.export(0)), providers=["CPUExecutionProvider"])
        random, expected = np.random.default_rng(3), {}
        for batch in BATCHES:
            inputs = {}
            for entry in session.get_inputs():
                dtype, shape = np.dtype(dtypes[entry.type]), (batch, *entry.shape[1:])
                if dtype == np.uint8:  # of random brightness: noise alone looks the same to a network
                    drawn = random.integers(0, 256, shape) * random.uniform(size=(batch, *(1,) * (len(shape) - 1)))
                else:
                    drawn = random.normal(size=shape) if dtype.kind == "f" else random.integers(0, 3, shape)
                inputs[entry.name] = drawn.astype(dtype)
            np.savez(folder / f"inputs-{batch}.npz", **inputs)
            outputs = [entry.name for entry in session.get_outputs()]
            expected[batch] = dict(zip(outputs, session.run(outputs, inputs), strict=True))
        results[case] = SimpleNamespace(folder=folder, expected=expected, name=file.name)
    folders = [str(result.folder) for result in results.values()]
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, *folders],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return results


@pytest.mark.parametrize("case", CASES)
def test_a_process_with_torch_alone_computes_what_onnxruntime_does(case, ran):
    assert ran[case].name == "policy-000000000000.pt"
    for batch, expected in ran[case].expected.items():
        actual = np.load(ran[case].folder / f"out-{batch}.npz")
        assert list(actual) == list(expected)
        for name, value in expected.items():
            assert (actual[name].dtype, actual[name].shape) == (value.dtype, value.shape)
            np.testing.assert_allclose(actual[name], value, atol=1e-4, err_msg=name)
    if case != "quantiles":  # untrained quantiles may all prefer one action
        assert len(np.unique(ran[case].expected[40]["action"], axis=0)) > 1  # the actions differ


def metadata_of(path) -> dict:
    files = {METADATA: ""}
    with pytest.warns(DeprecationWarning):
        torch.jit.load(path, _extra_files=files)
    return json.loads(files[METADATA])


def test_the_metadata_are_those_of_the_onnx_file_and_name_the_inputs_in_order(ran):
    metadata = metadata_of(ran["transformer"].folder / "policy.pt")
    names = [entry["name"] for entry in metadata["inputs"]]
    assert names == [
        "observation",
        "reward",
        "target_return",
        "context.observation",
        "context.action",
        "context.return_to_go",
        "context.length",
    ]
    assert metadata["inputs"][3] == {"name": "context.observation", "dtype": "float32", "shape": [4, 4]}
    assert metadata["outputs"] == ["action", *("next_" + name for name in names if name.startswith("context."))]
    onnx = next((ran["transformer"].folder / "run").rglob("*.onnx"))
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    same = {key.removeprefix("offrl."): json.loads(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}
    assert {**same, "parity": 0} == {
        key: 0 if key == "parity" else value for key, value in metadata.items() if key not in ("inputs", "outputs")
    }
    assert metadata["parity"]["largest_difference"] <= 1e-4


@pytest.mark.parametrize("name", [name for name, algorithm in FROM_DATA.items() if algorithm.acts])
def test_every_policy_of_the_registry_becomes_a_file_without_a_warning(name, store_for, tmp_path):
    learner = learner_of(name, store_for(get(name)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = export_torchscript(
            learner.policy(0), tmp_path / "p.pt", observation=("float32", (3,)), discrete=learner.space["discrete"]
        )
    assert difference < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["p.pt"]


def test_the_file_holds_the_actor_and_no_critic(continuous_store, tmp_path):
    algorithm = get("td3_bc")
    critics = {"critic_encoder.units": [1024, 1024], "actor_encoder.units": [16]}
    learner = Learner.create(algorithm, algorithm.configure({"batch_size": 16, **critics}), continuous_store, seeds=range(3))
    export_torchscript(learner.policy(2), tmp_path / "p.pt", observation=("float32", (3,)), discrete=False)
    assert (tmp_path / "p.pt").stat().st_size < 50_000


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, observation):
        return self.layer(observation)


class OneBatch(Linear):
    def forward(self, observation):
        return super().forward(observation) + torch.zeros(int(observation.shape[0]), 2)


class Another(Linear):
    def forward(self, observation):
        return super().forward(observation) + (0.02 if torch.jit.is_tracing() else 0.0)


class Nothing(Linear):
    def forward(self, observation):
        return super().forward(observation) * float("nan")


@pytest.mark.parametrize(
    ("module", "message"), [(OneBatch, "cannot be exported to TorchScript"), (Another, "differs from the network by 0.0"), (Nothing, "NaN")]
)
def test_a_file_that_differs_from_the_network_is_not_written(module, message, tmp_path):
    with pytest.raises(CheckFailed, match=message) as caught:
        export_torchscript(module().eval(), tmp_path / "p.pt", observation=("float32", (3,)), discrete=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    export_torchscript(Linear().eval(), tmp_path / "p.pt", observation=("float32", (3,)), discrete=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_program_of_the_documentation_acts_as_the_network_does(continuous_store, tmp_path):
    program = re.search(r"```cpp\n(.*?)```", DOCS.read_text(), re.S)[1]
    (tmp_path / "main.cpp").write_text(program)
    root = Path(torch.__file__).parent  # its headers and libraries are libtorch
    subprocess.run(
        [
            "g++",
            "-std=c++20",
            f"-I{root}/include",
            f"-I{root}/include/torch/csrc/api/include",
            "main.cpp",
            f"-L{root}/lib",
            f"-Wl,-rpath,{root}/lib",
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
            "-o",
            "main",
        ],
        cwd=tmp_path,
        check=True,
        timeout=400,
    )
    module = learner_of("td3_bc", continuous_store).policy(0)
    export_torchscript(module, tmp_path / "policy.pt", observation=("float32", (3,)), discrete=False, metadata={"job": "j7"})
    printed = subprocess.run(["./main"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=180).stdout
    actions, _, metadata = printed.rpartition("\n{")
    action = [float(number) for number in actions.splitlines()[0].split()]
    np.testing.assert_allclose(action, module(torch.zeros(1, 3))[0].numpy(), rtol=1e-3)
    assert json.loads("{" + metadata)["job"] == "j7"


def test_the_suffix_of_the_path_chooses_the_format(continuous_store, tmp_path):
    learner = learner_of("td3_bc", continuous_store)
    rows = torch.randn(4, 3)
    with pytest.warns(DeprecationWarning):
        policy = torch.jit.load(learner.export(tmp_path / "p.pt"))
    assert torch.equal(policy(rows), learner.policy(0)(rows))
    with pytest.raises(InvalidInput, match=r"neither \.onnx nor \.pt"):
        learner.export(tmp_path / "p.bin")
