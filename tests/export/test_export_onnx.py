"""Policy files from torch modules: their content, the agreement of onnxruntime with torch, and that a wrong export leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cheap_settings import cheap_learner
from torch import nn

from offrl.errors import CheckFailed, InvalidInput
from offrl.policy import Policy
from offrl_store import disk
from offrld.algos import get
from offrld.export import policy_file, templates
from offrld.export.onnx import PolicyExporter, annotate, export_policy
from offrld.export.templates import Templates

CONTINUOUS = ("float32", (5,))
PIXELS = ("uint8", (3, 20, 20))


class Continuous(nn.Module):
    """Standard scaler, MLP, tanh, scaling to bounds, clipping; a transposed weight and a plain tensor, which folding would hide."""

    def __init__(self, seed: int = 0, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 2))
        self.mix = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("mean", torch.randn(5))
        self.register_buffer("std", torch.rand(5) + 0.5, persistent=False)
        self.register_buffer("low", torch.tensor([-2.0, 0.0]))
        self.register_buffer("high", torch.tensor([2.0, 30.0]))
        self.offset = torch.randn(2) * 0.1

    def forward(self, observation):
        squashed = torch.tanh(self.net((observation - self.mean) / (self.std + 1e-3)) @ self.mix.t()) + self.offset
        return torch.minimum(torch.maximum(self.low + (squashed + 1) / 2 * (self.high - self.low), self.low), self.high)


class Discrete(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    def scores(self, observation):
        return self.net(observation)

    def forward(self, observation):
        return self.scores(observation).argmax(dim=-1)


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        self.net(torch.zeros(1, 3, 20, 20))

    def forward(self, observation):
        return self.net(observation.to(torch.float32) / 255).argmax(dim=-1)


class TwoFields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.camera, self.joints = nn.Conv2d(3, 4, 5, 3), nn.Linear(5, 4)
        self.head = nn.Linear(4 * 36 + 4, 2)

    def forward(self, *, camera, joints):
        seen = torch.relu(self.camera(camera.to(torch.float32) / 255)).flatten(1)
        return torch.tanh(self.head(torch.cat([seen, self.joints(joints)], dim=1)))


def rows(spec: tuple[str, tuple[int, ...]], count: int) -> np.ndarray:
    dtype, shape = spec
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, *shape)).astype(dtype) if dtype == "uint8" else rng.normal(size=(count, *shape)).astype(dtype)


def assert_same(module: nn.Module, path: Path) -> None:
    observations = rows(CONTINUOUS, 50)
    with torch.no_grad():
        expected = module(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(Policy(path).predict(observations), expected, atol=1e-4, rtol=0)


CASES = {
    "continuous": (Continuous, CONTINUOUS, False),
    "discrete": (Discrete, CONTINUOUS, True),
    "pixels": (Pixels, PIXELS, True),
    "two fields": (TwoFields, {"camera": PIXELS, "joints": CONTINUOUS}, False),
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """A module, its policy file, the spec of its observation, whether it is discrete, and the difference that the export measured."""
    make, observation, discrete = CASES[request.param]
    module, path = make(), tmp_path_factory.mktemp("export") / "policy.onnx"
    space = {"low": None, "high": None, "n": None, "source": "env:CartPole-v1"}
    metadata = {"algorithm": "bc", "step": 7, "space": space, "config": {"a": np.float32(2)}}
    difference = export_policy(module, path, observation=observation, discrete=discrete, metadata=metadata)
    return module, path, observation, discrete, difference


def test_file_is_one_valid_onnx_graph_with_the_agreed_names_and_an_open_batch_axis(exported):
    _, path, observation, discrete, _ = exported
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert max(entry.version for entry in model.opset_import if not entry.domain) >= 18
    assert not any(t.external_data for t in model.graph.initializer)
    assert os.listdir(path.parent) == [path.name]
    fields = observation if isinstance(observation, dict) else {"observation": observation}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    assert list(inputs) == list(fields)
    for name, (dtype, shape) in fields.items():
        assert inputs[name].type == {"float32": "tensor(float)", "uint8": "tensor(uint8)"}[dtype]
        assert isinstance(inputs[name].shape[0], str) and tuple(inputs[name].shape[1:]) == shape
    (output,) = session.get_outputs()
    assert output.name == "action" and output.type == ("tensor(int64)" if discrete else "tensor(float)")
    assert isinstance(output.shape[0], str) and len(output.shape) == (1 if discrete else 2)


@pytest.mark.parametrize("batch", [1, 3, 200])
def test_onnxruntime_computes_what_torch_does(exported, batch):
    module, path, observation, discrete, difference = exported
    assert 0 <= difference <= 1e-4
    fields = observation if isinstance(observation, dict) else {"observation": observation}
    arrays = {name: rows(spec, batch) for name, spec in fields.items()}
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        expected = (module(**tensors) if isinstance(observation, dict) else module(tensors["observation"])).numpy()
    actions = Policy(path).predict(arrays if isinstance(observation, dict) else arrays["observation"])
    assert actions.dtype == expected.dtype and actions.shape == expected.shape
    np.testing.assert_allclose(actions, expected, atol=0 if discrete else 1e-4, rtol=0)


def test_metadata_is_json_under_our_prefix_and_describes_the_graph(exported):
    _, path, observation, discrete, difference = exported
    props = {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert all(key.startswith("offrl.") for key in props)
    assert props["offrl.format"] == 1 and props["offrl.algorithm"] == "bc"
    assert props["offrl.step"] == 7 and props["offrl.config"] == {"a": 2}
    assert props["offrl.parity"]["largest_difference"] == difference and props["offrl.parity"]["tolerance"] == 1e-4
    assert props["offrl.space"]["discrete"] is discrete and props["offrl.space"]["source"] == "env:CartPole-v1"
    fields = observation if isinstance(observation, dict) else {"observation": observation}
    assert props["offrl.space"]["observation"] == {name: {"dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in fields.items()}
    assert props["offrl.versions"]["torch"] == torch.__version__


def test_the_file_contains_no_path_of_the_machine_that_made_it(exported):
    data = exported[1].read_bytes()
    assert str(Path.cwd()).encode() not in data and b"site-packages" not in data and Path(__file__).name.encode() not in data


def test_annotate_adds_an_evaluation_and_keeps_the_graph(exported):
    _, path, *_ = exported
    before = onnx.load(path)
    annotate(path, {"evaluation": {"env": "Pendulum-v1", "return_mean": float("nan")}})
    after = onnx.load(path)
    assert after.graph == before.graph
    policy = Policy(path)
    assert policy.metadata["evaluation"] == {"env": "Pendulum-v1", "return_mean": None}
    assert policy.metadata["algorithm"] == "bc" and policy.env_id == "Pendulum-v1"


# ---------------------------------------------------------------------------------------------------------------- refusals
class Dropout(Continuous):
    def forward(self, observation):
        return super().forward(nn.functional.dropout(observation, 0.5, self.training))


class TracedWrong(Continuous):
    """Computes something else under the tracer, as if an operator of the exporter were faulty."""

    def forward(self, observation):
        action = super().forward(observation)
        return action * 1.001 if torch.compiler.is_exporting() else action


class WrongScores(Discrete):
    def scores(self, observation):
        scores = self.net(observation)
        return scores * 1.01 if torch.compiler.is_exporting() else scores


class FlippedChoice(Discrete):
    def forward(self, observation):
        scores = self.scores(observation)
        return (-scores if torch.compiler.is_exporting() else scores).argmax(dim=-1)


@pytest.mark.parametrize(
    ("module", "discrete", "reason"),
    [
        (Dropout(), False, "differs"),
        (TracedWrong(), False, "differs"),
        (WrongScores(), True, "differs"),
        (FlippedChoice(), True, "differs"),
        (Discrete(), False, "int64"),
        (Continuous(), True, "float32"),
    ],
)
def test_an_export_that_differs_from_the_network_fails_and_keeps_the_old_file(tmp_path, module, discrete, reason):
    path = tmp_path / "policy.onnx"
    path.write_bytes(b"the former policy")
    with pytest.raises(CheckFailed, match=reason) as caught:
        export_policy(module, path, observation=CONTINUOUS, discrete=discrete)
    assert "\n" not in str(caught.value) and caught.value.hint
    assert os.listdir(tmp_path) == ["policy.onnx"] and path.read_bytes() == b"the former policy"


def test_a_network_that_diverged_is_refused(tmp_path):
    module = Continuous()
    with torch.no_grad():
        module.net[0].bias[0] = float("nan")
    with pytest.raises(CheckFailed, match="diverged"):
        export_policy(module, tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)
    assert not os.listdir(tmp_path)


def test_a_module_that_cannot_be_traced_fails_in_one_line(tmp_path):
    class Branching(Continuous):
        def forward(self, observation):
            return super().forward(observation) if float(observation.sum()) > 0 else observation[:, :2]

    with pytest.raises(CheckFailed, match="cannot be exported") as caught:
        export_policy(Branching(), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)
    assert "\n" not in str(caught.value)
    assert not os.listdir(tmp_path)


def test_a_failing_write_leaves_nothing(tmp_path):
    exporter = PolicyExporter()
    (tmp_path / "policy.onnx").mkdir()  # a folder is in the way: the rename fails
    with pytest.raises(InvalidInput, match="it is a folder"):
        exporter.export(Continuous(), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)
    assert os.listdir(tmp_path) == ["policy.onnx"]


def test_a_policy_is_written_into_a_pipe_and_through_a_link_which_stay(tmp_path):
    pipe, link, target = tmp_path / "pipe.onnx", tmp_path / "link.onnx", tmp_path / "target.onnx"
    os.mkfifo(pipe)
    link.symlink_to(target)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    policy_file.write(b"the policy", pipe)
    reader.join(30)
    policy_file.write(b"the policy", link)
    assert read == [b"the policy"] and stat.S_ISFIFO(pipe.lstat().st_mode)
    assert link.is_symlink() and target.read_bytes() == b"the policy"
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InvalidInput, match="it is a folder"):
        policy_file.write(b"the policy", tmp_path / "folder.onnx")


def test_large_actions_are_compared_relative_to_their_size(tmp_path):
    class Strong(Continuous):
        def forward(self, observation):
            return super().forward(observation) * 1e5  # newtons: float32 resolves 0.25 of them

    assert export_policy(Strong(), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False) <= 1e-4


def test_ties_between_scores_are_not_a_difference(tmp_path):
    class Tied(Discrete):
        """Has pairs of actions with the same score, of which torch and the export choose different ones."""

        def scores(self, observation):
            scores = self.net(observation)
            return torch.cat([scores, scores], dim=1)

        def forward(self, observation):
            choice = self.scores(observation).argmax(dim=-1)
            return (choice + 3) % 6 if torch.compiler.is_exporting() else choice

    assert export_policy(Tied(), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=True) <= 1e-4


class BestOf(nn.Module):
    """Takes the best of four actions, of which the first two have scores ``gap`` apart; the export prefers the second."""

    def __init__(self, gap: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.gap = nn.Linear(5, 8), gap

    def candidates(self, observation):
        actions = torch.tanh(self.net(observation)).unflatten(-1, (4, 2)).movedim(1, 0)  # [4, B, 2]
        base = observation.sum(-1)  # [B]
        return actions, torch.stack([base, base - self.gap, base - 1.0, base - 2.0])

    def forward(self, observation):
        actions, _ = self.candidates(observation)
        return actions[1] if torch.compiler.is_exporting() else actions[0]


def test_a_candidate_of_the_same_score_is_accepted_and_a_worse_one_is_not(tmp_path):
    assert export_policy(BestOf(1e-6), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False) <= 1e-4
    with pytest.raises(CheckFailed, match="differs from the network by"):
        export_policy(BestOf(0.1), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)


@pytest.mark.parametrize("name", ["bcq", "bear", "crr"])
def test_the_action_of_a_policy_is_its_best_candidate(name, continuous_store):
    policy = cheap_learner(get(name), continuous_store).policy(0)
    observation = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    actions, scores = policy.candidates(observation)
    chosen = actions[scores.argmax(0), torch.arange(6)]
    torch.testing.assert_close(chosen, policy(observation), rtol=0, atol=0)


# ---------------------------------------------------------------------------------------------------------------- template
def test_template_export_equals_full_export(tmp_path):
    exporter = PolicyExporter()
    for seed in range(3):
        module = Continuous(seed)
        exporter.export(module, tmp_path / f"template-{seed}.onnx", observation=CONTINUOUS, discrete=False, metadata={"seed": seed})
        export_policy(module, tmp_path / f"full-{seed}.onnx", observation=CONTINUOUS, discrete=False, metadata={"seed": seed})
        assert (tmp_path / f"template-{seed}.onnx").read_bytes() == (tmp_path / f"full-{seed}.onnx").read_bytes()
    assert exporter.traces == 1


def test_a_module_of_another_structure_is_traced_again(tmp_path):
    exporter = PolicyExporter()
    for module in (Continuous(width=16), Continuous(width=24), Continuous(1, width=16)):
        exporter.export(module, tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)
        assert_same(module, tmp_path / "policy.onnx")
    assert exporter.traces == 2


def test_a_template_that_hides_a_changed_constant_is_detected_and_traced_again(tmp_path):
    class Hidden(Continuous):
        """A number that is neither a tensor nor a plain attribute of the module, so that nothing but the parity check sees it change."""

        def __init__(self, gain):
            super().__init__()
            self.settings = {"gain": gain}

        def forward(self, observation):
            return super().forward(observation) * self.settings["gain"]

    exporter = PolicyExporter()
    for gain in (1.0, 0.5):
        module = Hidden(gain)
        assert exporter.export(module, tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False) <= 1e-4
        assert_same(module, tmp_path / "policy.onnx")
    assert exporter.traces == 2


@pytest.mark.parametrize(("kind", "discrete", "fields"), [(Continuous, False, CONTINUOUS), (Discrete, True, CONTINUOUS)])
def test_a_later_process_writes_the_same_file_from_a_kept_template(tmp_path, kind, discrete, fields):
    folder = tmp_path / "templates"
    for seed in range(2):  # a new exporter each, as in another process
        exporter = PolicyExporter(Templates(folder))
        exporter.export(kind(seed), tmp_path / "kept.onnx", observation=fields, discrete=discrete)
        assert exporter.traces == (seed == 0)
        export_policy(kind(seed), tmp_path / "traced.onnx", observation=fields, discrete=discrete)
        assert (tmp_path / "kept.onnx").read_bytes() == (tmp_path / "traced.onnx").read_bytes()
    (file,) = folder.iterdir()
    weights = kind(0).state_dict()
    assert not any(tensor.numpy().tobytes() in file.read_bytes() for tensor in weights.values())  # it holds a graph without values


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "another graph", "an unknown operator", "no output", "a folder instead", "a pipe instead"]
)
def test_a_kept_template_that_is_damaged_is_traced_again(tmp_path, damage):
    folder = tmp_path / "templates"
    PolicyExporter(Templates(folder)).export(Continuous(0), None, observation=CONTINUOUS, discrete=False)
    (file,) = folder.iterdir()
    if damage == "another graph":  # of the same tensors
        model = onnx.load(file)
        next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "Sigmoid"
        onnx.save(model, file)
    elif damage in ("an unknown operator", "no output"):
        model = onnx.load(file)
        model.graph.node[0].op_type = "Nothing"
        if damage == "no output":
            del model.graph.output[:]
        onnx.save(model, file)
    elif damage.endswith("instead"):
        file.unlink()
        file.mkdir() if "folder" in damage else os.mkfifo(file)
    else:
        file.write_bytes(file.read_bytes()[:200] if damage == "cut" else b"")
    exporter = PolicyExporter(Templates(folder))
    exporter.export(Continuous(1), tmp_path / "policy.onnx", observation=CONTINUOUS, discrete=False)
    assert exporter.traces == 1
    assert_same(Continuous(1), tmp_path / "policy.onnx")


def test_a_kept_template_of_scores_without_an_output_is_traced_again(tmp_path):
    PolicyExporter(Templates(tmp_path)).export(Discrete(), None, observation=CONTINUOUS, discrete=True)
    (file,) = tmp_path.iterdir()
    model = onnx.load(file)
    del model.graph.output[:]
    onnx.save(model, file)
    exporter = PolicyExporter(Templates(tmp_path))
    exporter.export(Discrete(), None, observation=CONTINUOUS, discrete=True)
    assert exporter.traces == 1


def test_a_worker_whose_share_of_the_disk_is_used_up_keeps_no_template(tmp_path):
    def refuse(count: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    disk.limit(refuse)
    try:
        PolicyExporter(Templates(tmp_path)).export(Continuous(), None, observation=CONTINUOUS, discrete=False)
    finally:
        disk.limit(None)
    assert not list(tmp_path.iterdir())


def test_the_least_recently_used_templates_are_removed(tmp_path):
    exporter = PolicyExporter(Templates(tmp_path))
    exporter.export(Continuous(), None, observation=CONTINUOUS, discrete=False)
    for number in range(templates.KEPT + 3):
        other = tmp_path / f"{number}.onnx"
        other.touch()
        os.utime(other, (number, number))
    exporter.export(Continuous(width=24), None, observation=CONTINUOUS, discrete=False)
    assert len(list(tmp_path.iterdir())) == templates.KEPT
    assert PolicyExporter(Templates(tmp_path)).export(Continuous(), None, observation=CONTINUOUS, discrete=False) <= 1e-4


def test_export_prints_nothing_and_a_policy_needs_no_torch(tmp_path):
    """The worker's stdout is a protocol and its stderr a log for people; the robot has neither torch nor gymnasium."""
    path = tmp_path / "policy.onnx"
    script = (
        "import sys; from torch import nn; from offrld.export.onnx import export_policy;"
        "export_policy(nn.Sequential(nn.Linear(5, 8), nn.Dropout(), nn.Tanh(), nn.Linear(8, 2)).eval(), sys.argv[1],"
        " observation=('float32', (5,)), discrete=False)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    script = (
        "import sys; from offrl.policy import Policy; import offrl.rollout; policy = Policy(sys.argv[1]); print(len(policy.act([0.0] * 5)),"
        " sorted(set(sys.modules) & {'torch', 'onnx', 'gymnasium', 'offrld'}))"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 []\n", "")


def test_samples_set_the_range_of_the_check(tmp_path):
    """The input is an index into a table: values beyond the data's range are invalid."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(16, 4)

        def forward(self, observation):
            return self.table(observation).argmax(dim=-1)

    export_policy(Table(), tmp_path / "policy.onnx", observation=("int64", ()), discrete=True, samples=np.arange(16))
    assert [Policy(tmp_path / "policy.onnx").act(i) in range(4) for i in (0, 15)] == [True, True]
