"""Check what a worker computes with and print JSON: torch and its devices, the store's kernels, onnxruntime.

`offrl doctor` has the daemon run ``python -m offrld.worker.devices``: the same process, user and environment as a job's worker.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

SIZE = 512  # rows and columns of the matrices to multiply
SMI = "see `nvidia-smi` and the driver's version; the build of torch must fit it: https://pytorch.org/get-started/locally/"


def look() -> dict[str, Any]:
    """Return ``{"checks": [...], "versions": {...}}``; a missing part is a failed check, not an exception."""
    checks: list[dict[str, str]] = []
    versions: dict[str, str] = {}
    for part in (_torch, _kernels, _onnx):
        try:
            part(checks, versions)
        except Exception as error:
            name = part.__name__.strip("_")
            message = " ".join(f"{type(error).__name__}: {error}".split())
            checks.append({"name": name, "status": "fail", "message": message, "hint": 'pip install "offrl[daemon]"'})
    return {"checks": checks, "versions": versions}


def _torch(checks: list[dict[str, str]], versions: dict[str, str]) -> None:
    import torch

    versions["torch"] = torch.__version__
    devices = ["cpu"]
    if torch.cuda.is_available():
        versions["cuda"] = str(torch.version.cuda)
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in devices:
        name = device if device == "cpu" else f"{device} {torch.cuda.get_device_name(device)}"
        try:
            seconds = _compute(torch, device)
        except Exception as error:
            message = " ".join(f"{name}: {error}".split())
            checks.append({"name": "device", "status": "fail", "message": message[:300], "hint": SMI if device != "cpu" else ""})
        else:
            message = f"{name}: computes ({1e6 * seconds:.0f} us for a product of {SIZE}x{SIZE} matrices)"
            checks.append({"name": "device", "status": "ok", "message": message})
    if len(devices) == 1:
        message = "no GPU is used: torch is a CPU build" if torch.version.cuda is None else "torch finds no GPU"
        status = "warn" if os.path.exists("/dev/nvidiactl") else "ok"  # the machine has a card that is not used
        checks.append({"name": "card", "status": status, "message": message, "hint": SMI if status == "warn" else ""})


def _compute(torch: Any, device: str) -> float:
    """Return the seconds that a matrix product takes. Raises `ArithmeticError` if the result differs from the CPU's in double precision."""
    left, right = (torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    a, b = left.to(device), right.to(device)
    product = a @ b
    expected = left.double() @ right.double()
    error = float((product.cpu().double() - expected).abs().max())
    if not error < 0.1:  # tf32 rounds to 10 bits: the error is a few times sqrt(512) * 2^-11
        raise ArithmeticError(f"a product of matrices is wrong by {error:g}")
    began = time.perf_counter()
    for _ in range(10):
        product = a @ b
    product.cpu()
    return (time.perf_counter() - began) / 10


def _kernels(checks: list[dict[str, str]], versions: dict[str, str]) -> None:
    from offrl_store.kernels import kernels

    name = kernels().__name__.rpartition(".")[2]
    versions["kernels"] = "compiled" if name == "_compiled" else "NumPy"
    if name == "_compiled":
        checks.append({"name": "kernels", "status": "ok", "message": "the store samples with its compiled kernels"})
    else:
        hint = "install a C compiler and then offrl again (docs/operations.md)"
        checks.append({"name": "kernels", "status": "warn", "message": "the store samples with NumPy, which is slower", "hint": hint})


def _onnx(checks: list[dict[str, str]], versions: dict[str, str]) -> None:
    import onnx
    import onnxruntime

    versions["onnxruntime"], versions["onnx"] = onnxruntime.__version__, onnx.__version__
    checks.append({"name": "onnx", "status": "ok", "message": f"onnxruntime {onnxruntime.__version__}, onnx {onnx.__version__}"})


if __name__ == "__main__":
    pipe = os.dup(1)
    os.dup2(2, 1)  # output of libraries is not part of the answer
    os.write(pipe, json.dumps(look()).encode() + b"\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # tearing down torch and its threads would take longer than all the rest
