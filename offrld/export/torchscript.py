"""A torch policy as a TorchScript file, for programs that have libtorch and no ONNX runtime.

The network is traced, and frozen: what the policy does not use (the critics) is left out, and the file needs nothing of this package. The
inputs are positional, in the order that the metadata's ``inputs`` give; the metadata are JSON in the extra file `METADATA`.
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

METADATA = "offrl.json"  # the extra file


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

    For arguments see `offrld.export.onnx.export_policy`. The metadata also gets ``inputs``: the name,
    dtype and shape (without the batch axis) of each argument in order, and ``outputs``: the names of what is returned. One output is a
    tensor, several (of a policy that remembers) a tuple.

    Raises:
        CheckFailed: the module cannot be traced, or differs from the file's by more than 1e-4 (see `parity`), or gives NaN.
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
        except Exception as error:  # the tracer, and what it made, raise whatever torch or the module does
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
    """The policy as a function of its inputs in order: a traced module has no keyword arguments."""

    def __init__(self, policy: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.names = policy, names
        self.training = policy.training

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        given = outputs(self.policy, dict(zip(self.names, inputs, strict=True)))
        return given if len(given) > 1 else given[0]


def _saved(traced: torch.jit.ScriptModule, extra: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files=dict(extra or {}))
    return buffer.getvalue()


def _run(data: bytes, reference: Reference) -> list[list[np.ndarray]]:
    """What the module in a file gives on the observations of the check."""
    loaded = torch.jit.load(io.BytesIO(data))
    given = [loaded(*(torch.from_numpy(inputs[name]) for name in reference.specs)) for inputs in reference.inputs]
    return [[value.numpy() for value in (each if isinstance(each, tuple) else (each,))] for each in given]


def _input(name: str, spec: ObservationSpec) -> dict[str, Any]:
    return {"name": name, "dtype": str(spec.dtype), "shape": list(spec.shape)}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """TorchScript is deprecated in Python, and what libtorch loads; the tracer warns of sizes that it keeps, which the check looks for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


__all__ = ["METADATA", "export_torchscript"]
