"""Export a torch policy as a TorchScript file, for programs that have libtorch but no ONNX runtime.

The network is traced and frozen: the file leaves out what the policy does not use (the critics) and does not need this package. Inputs are
positional, in the order of ``inputs`` in the metadata. The metadata are JSON in the extra file `METADATA`.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from offrl.errors import CheckFailed
from offrl.policy import ACTION
from offrld.export.network import Reference, differs, episode_specs, example, observation_specs, on_cpu, outputs, reason
from offrld.export.parity import TOLERANCE, ObservationSpec
from offrld.export.policy_file import described, write
from offrld.json_safe import json_safe

METADATA = "offrl.json"  # name of the extra file


def export_torchscript(
    module: nn.Module,
    path: str | Path,
    *,
    observation: Any,
    discrete: bool,
    metadata: Mapping[str, Any] | None = None,
    samples: Any = None,
) -> float:
    """Write ``module`` to ``path`` as a TorchScript file and return the largest difference from torch.

    For the arguments see `offrld.export.onnx.export_policy`. The export adds to the metadata ``inputs``, the name, dtype and shape (without
    the batch axis) of each argument in order, and ``outputs``, the names of the results. One output is a tensor; several, of a policy that
    remembers, are a tuple.

    Raises:
        CheckFailed: the module cannot be traced, differs from the file's by more than 1e-4 (see `parity`), or returns NaN.
        OSError: writing failed; nothing is left behind.
    """
    module = on_cpu(module)
    fields = observation_specs(observation, samples)
    specs = fields | episode_specs(module, fields)
    with torch.no_grad(), _silence():
        reference = Reference(module, specs, discrete)
        try:
            traced = torch.jit.freeze(
                torch.jit.trace(_Positional(module, list(specs)), tuple(example(specs).values()), check_trace=False),
                optimize_numerics=False,
            )
            difference = reference.difference(_run(_saved(traced), reference))
        except Exception as error:  # the tracer and the traced module raise any error of torch and of the module
            message = f"the policy cannot be exported to TorchScript: {reason(error)}"
            raise CheckFailed(message, hint="its forward must be traceable by torch.jit.trace, for any size of the batch") from error
        if not difference <= TOLERANCE:
            raise differs(difference, reference)
        description = described(reference, fields, dict(metadata or {}), difference)
        description["inputs"] = [_input(name, spec) for name, spec in specs.items()]
        description["outputs"] = [ACTION, *reference.following]
        write(_saved(traced, {METADATA: json.dumps(json_safe(description), allow_nan=False)}), Path(path))
    return difference


class _Positional(nn.Module):
    """The policy with positional inputs: a traced module has no keyword arguments."""

    def __init__(self, policy: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.names = policy, names
        self.training = policy.training

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        results = outputs(self.policy, dict(zip(self.names, inputs, strict=True)))
        return results if len(results) > 1 else results[0]


def _saved(traced: torch.jit.ScriptModule, extra: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files=dict(extra or {}))
    return buffer.getvalue()


def _run(data: bytes, reference: Reference) -> list[list[np.ndarray]]:
    """Run the module of a file on the observations of the check; return its outputs for each batch."""
    loaded = torch.jit.load(io.BytesIO(data))
    results = [loaded(*(torch.from_numpy(inputs[name]) for name in reference.specs)) for inputs in reference.inputs]
    return [[value.numpy() for value in (batch if isinstance(batch, tuple) else (batch,))] for batch in results]


def _input(name: str, spec: ObservationSpec) -> dict[str, Any]:
    return {"name": name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress two warnings: Python deprecates TorchScript, which libtorch still loads; and the tracer warns of fixed sizes, which the
    parity check detects.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


__all__ = ["METADATA", "export_torchscript"]
