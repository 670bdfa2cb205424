"""Export a torch policy as one ONNX file: graph, metadata, parity check, atomic write.

Tracing a module takes about a second, and each evaluation during training exports every seed. `PolicyExporter` therefore traces each
structure of a module only once, without constant folding, so that every parameter and buffer becomes an initializer of its own name. The
next export only writes the new values there. onnxruntime folds constants when it loads the file, so the policy runs as fast. The parity
check verifies every file that is written; a mismatch leads to a fresh trace.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from offrl.errors import CheckFailed
from offrl.policy import ACTION, session_options
from offrld.export.network import (
    OBSERVATION,
    Reference,
    call,
    differs,
    episode_specs,
    example,
    following,
    observation_specs,
    on_cpu,
    outputs,
    reason,
)
from offrld.export.parity import TOLERANCE, ObservationSpec
from offrld.export.policy_file import annotate, described, with_metadata, write
from offrld.export.templates import Template, Templates

OPSET = 20
SCORES = "scores"


def export_policy(
    module: nn.Module,
    path: str | Path,
    *,
    observation: Any,
    discrete: bool,
    metadata: Mapping[str, Any] | None = None,
    samples: Any = None,
) -> float:
    """Write ``module`` to ``path`` as a policy file (format: ``docs/policy-file.md``) and return the largest difference from torch.

    Args:
        module: ``forward(observation [B, ...])`` takes the dataset's dtype and the environment's units and returns the action: float32
            ``[B, A]`` clipped to its bounds, or int64 ``[B]``. Named observation fields are keyword arguments. A discrete module may
            offer ``scores(...)`` ``[B, N]`` whose argmax is the action; the check compares them too, and they settle ties. The module is
            exported in its present mode (train or eval). One that remembers (`offrld.engine.learner.sequence_policy`) has
            ``episode_inputs`` beside the observation and returns the action and the next context.
        path: replaced atomically on success, untouched on failure.
        observation: ``(dtype, shape)`` or a store `Field`, shape without the batch axis; or ``{name: (dtype, shape) | Field}``.
        discrete: whether the action is one of n choices.
        metadata: JSON values by key, written as ``offrl.KEY``: ``space`` (with ``low``, ``high``, ``n``, ``source``), ``algorithm``,
            ``config``, ``dataset``, ``job``, ``step``, ``seed``, ``evaluation``, ``versions``. The export adds ``format``, ``parity``, and
            the file's inputs and output to ``space``.
        samples: rows of the dataset's observations ``[N, ...]`` (or a mapping of them); they set the range of the check.

    Raises:
        CheckFailed: the module cannot be exported, differs from its export by more than 1e-4 (see `parity`), or returns NaN.
        OSError: writing failed; nothing is left behind.
    """
    return PolicyExporter().export(module, path, observation=observation, discrete=discrete, metadata=metadata, samples=samples)


class PolicyExporter:
    """Exports policies and traces each structure once. Keep one for the length of a job; it is not safe for several threads.

    Args:
        templates: graphs that earlier processes traced.

    Attributes:
        traces: number of traces so far, for tests and benchmarks.
    """

    def __init__(self, templates: Templates | None = None) -> None:
        self.traces = 0
        self._templates: dict[str, Template] = {}
        self._kept = templates

    def export(
        self,
        module: nn.Module,
        path: str | Path | None,
        *,
        observation: Any,
        discrete: bool,
        metadata: Mapping[str, Any] | None = None,
        samples: Any = None,
    ) -> float:
        """Export as `export_policy` does; with ``path`` None the file is made and checked but not written."""
        module = on_cpu(module)
        fields = observation_specs(observation, samples)
        specs = fields | episode_specs(module, fields)
        key = _structure(module, specs, discrete)
        template = self._templates.get(key) or (None if self._kept is None else self._kept.find(key))
        with torch.no_grad():
            reference = Reference(module, specs, discrete)
            traced = False
            if template is None or not (difference := _refilled(template, module, reference)) <= TOLERANCE:
                template, traced = self._trace(module, specs, discrete), True
                difference = _difference(reference, template)
        if not difference <= TOLERANCE:
            self._templates.pop(key, None)
            raise differs(difference, reference)
        self._templates[key] = template
        if traced and self._kept is not None:
            self._kept.keep(key, template)
        data = with_metadata(template.file, described(reference, fields, dict(metadata or {}), difference))
        if path is not None:
            write(data, Path(path))
        return difference

    def _trace(self, module: nn.Module, specs: Mapping[str, ObservationSpec], discrete: bool) -> Template:
        self.traces += 1
        scored = discrete and hasattr(module, "scores")
        outputs = [ACTION, *following(specs)]
        model = _to_onnx(_Graph(module, list(specs), scored), specs, [*outputs, SCORES] if scored else outputs)
        tensors = _tensors(module)
        template = Template.of(model, [tensor.name for tensor in model.graph.initializer if tensor.name in tensors], scored=scored)
        onnx.checker.check_model(template.file, full_check=True)
        return template


# ------------------------------------------------------------------------------------------------------------------- trace
class _Graph(nn.Module):
    """A module that takes its inputs as one list, so that one declaration of dynamic shapes fits every signature."""

    def __init__(self, policy: nn.Module, names: Sequence[str], scores: bool) -> None:
        super().__init__()
        self.policy, self.names = policy, tuple(names)
        self.with_scores = scores
        self.training = policy.training

    def forward(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.names, inputs, strict=True))
        results = outputs(self.policy, named)
        return (*results, call(self.policy.scores, named)) if self.with_scores else results


def _to_onnx(graph: _Graph, specs: Mapping[str, ObservationSpec], outputs: list[str]) -> onnx.ModelProto:
    from onnx_ir.passes import common as passes

    batch = torch.export.Dim("batch")
    inputs = example(specs)
    try:
        with _silence():
            program = torch.onnx.export(
                graph,
                (list(inputs.values()),),
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                input_names=list(specs),
                output_names=outputs,
                dynamic_shapes={"inputs": [{0: batch} for _ in specs]},
            )
            assert program is not None  # only the older exporter, dynamo=False, returns None
            model = program.model
            _make_room(model, {*specs, *outputs})
            passes.CommonSubexpressionEliminationPass()(model)
            passes.RemoveUnusedNodesPass()(model)
            passes.ClearMetadataAndDocStringPass()(model)  # stack traces with this machine's paths
            proto = program.model_proto
    except Exception as error:  # torch.onnx raises its own errors and those of torch.export, with pages of advice
        message = f"the policy cannot be exported to ONNX: {reason(error)}"
        raise CheckFailed(message, hint="its forward must be traceable by torch.export") from error
    del proto.graph.value_info[:]  # shapes between the nodes: onnxruntime infers them
    return proto


def _make_room(model: Any, names: set[str]) -> None:
    """Rename inner values that share a name with an input or output: a dataset may call a field ``val_0``, for example."""
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in names and id(value) not in ends:
                value.name = f"inner.{value.name}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the warnings and log lines of torch.onnx: they concern intended behaviour, and people read a worker's log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# -------------------------------------------------------------------------------------------------------------------- fill
def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return every tensor that the graph may hold (parameters, buffers, plain attributes) by the name that the trace gives it."""
    tensors: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        start = f"policy.{prefix}." if prefix else "policy."  # the module is the attribute `policy` of `_Graph`
        tensors.update((start + k, v) for k, v in vars(part).items() if isinstance(v, torch.Tensor))
        tensors.update((start + k, v) for group in (part._parameters, part._buffers) for k, v in group.items() if v is not None)
    return tensors


def _structure(module: nn.Module, specs: Mapping[str, ObservationSpec], discrete: bool) -> str:
    """Return the structure of a module as text: classes, tensor shapes, and the plain values that forward may read.

    Modules of the same structure trace to the same graph.
    """
    parts = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        plain = sorted((k, repr(v)) for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple, type(None))))
        parts.append((prefix, f"{type(part).__module__}.{type(part).__qualname__}", plain))
    tensors = sorted((name, str(t.dtype), tuple(t.shape)) for name, t in _tensors(module).items())
    return repr((parts, tensors, [(name, str(s.dtype), s.shape) for name, s in specs.items()], discrete))


def _fill(template: Template, module: nn.Module) -> bool:
    """Write the module's values into the template's initializers; return False if one differs in dtype or shape from the trace."""
    tensors = _tensors(module)
    names = set(template.names)
    for model in (template.file, template.scored):
        if model is None:
            continue
        for initializer in model.graph.initializer:
            if initializer.name not in tensors:
                if initializer.name in names:
                    return False
                continue
            try:
                array = tensors[initializer.name].detach().contiguous().numpy()
            except TypeError:  # a dtype that NumPy lacks (bfloat16)
                return False
            if list(array.shape) != list(initializer.dims) or onnx.helper.np_dtype_to_tensor_dtype(array.dtype) != initializer.data_type:
                return False
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    return True


# ------------------------------------------------------------------------------------------------------------------- check
def _difference(reference: Reference, template: Template) -> float:
    """Return the largest difference between the template in onnxruntime and torch."""
    results = _run(template.file, reference, [ACTION, *reference.following])
    scores = None if template.scored is None else [scores for (scores,) in _run(template.scored, reference, [SCORES])]
    return reference.difference(results, scores)


def _refilled(template: Template, module: nn.Module, reference: Reference) -> float:
    """Return the largest difference of a template filled with the module's values; infinity if it does not fit or does not run."""
    try:
        return _difference(reference, template) if _fill(template, module) else float("inf")
    except Exception:  # the file is damaged; onnxruntime's errors share no base class but Exception
        return float("inf")


def _run(model: onnx.ModelProto, reference: Reference, outputs: list[str]) -> list[list[np.ndarray]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), session_options(), providers=["CPUExecutionProvider"])
    return [session.run(outputs, inputs) for inputs in reference.inputs]


__all__ = ["OBSERVATION", "OPSET", "PolicyExporter", "annotate", "export_policy"]
