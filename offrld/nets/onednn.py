"""The matrix product through oneDNN, which on some processors computes float32 products twice as fast as torch's default library.

Measured with one thread, 256x256 by 256x256. One AMD EPYC with AVX-512: 145 us against torch's 303 us forward, 140 against 301 and 168
against 317 for the two products of the backward pass. Another (family 25, model 17, the fourth generation): about equal, 316 against 333,
310 against 330, 352 against 335. The operation is private to torch, so it is used only if `faster` finds it present, correct and faster.

If both are about as fast, the probe's choice would be random, and the choice determines the last bits of results. So the first answer is
saved in a file, per processor and versions, and later runs use it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from offrl_store.disk import read_small, write_atomic, write_new

WORTH = 1 << 20  # with fewer multiplications, a call costs more than it gains
NARROW = 16  # with fewer outputs, torch's own products are faster
GAIN = 0.9  # the probe's time limit, as a fraction of torch's time
TOLERANCE = 1e-4  # the probe's error limit, relative to the largest element
_SIZE = 256  # rows, inputs and outputs of the probe
_REPEATS = 15
_MOST_BYTES = 4096  # size limit of a saved answer


def gains(x: Tensor, weight: Tensor) -> bool:
    """Return whether the product of ``x [R, I]`` and ``weight [O, I]`` can go through oneDNN and is large enough to benefit."""
    outputs, inputs = weight.shape
    return x.dtype is torch.float32 and weight.dtype is torch.float32 and x.numel() * outputs >= WORTH and outputs >= NARROW and inputs > 1


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x [R, I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``; without gradient.

    Transposed operands are passed as views: a contiguous copy would cost 25 us for 256 x 256.
    """
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


@functools.lru_cache(maxsize=1)
def present() -> bool:
    """Return whether this build of torch has the operation with the arguments used here."""
    matrix = torch.ones(NARROW, NARROW)
    try:
        product(matrix, matrix)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def faster(threads: int, folder: Path | None = None) -> tuple[bool, str]:
    """Return whether oneDNN is present, correct and faster on this processor with this number of threads, and the evidence.

    Args:
        folder: folder that stores the answer between runs; None: the user's cache (``$XDG_CACHE_HOME/offrld``). Without a home or a
            writable folder, nothing is stored.
    """
    if not present():
        return False, "a build of torch without oneDNN's product"
    folder = user_cache() if folder is None else folder
    if folder is None:
        return _probe(threads)
    path = folder / f"linear-{_circumstances(threads)}.json"
    answer = _saved(path)
    return _save(path, _probe(threads)) if answer is None else answer


def user_cache() -> Path | None:
    """Return the folder in which this user's processes store data between runs; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offrld"
    except RuntimeError:  # no HOME and no entry in the user database
        return None


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """Describe the processor: model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join({line for line in lines if line.startswith(("model name", "flags", "cpu family", "CPU part", "Features"))})


def _circumstances(threads: int) -> str:
    """Hash everything that the times depend on, for use in a file name."""
    variables = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")]
    parts = [torch.__version__, str(threads), *variables, *sorted(_processor().splitlines())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _saved(path: Path) -> tuple[bool, str] | None:
    """Read the saved answer; None if the file does not exist or is not a valid answer."""
    try:
        answer = json.loads(read_small(path, _MOST_BYTES))
        faster, seen = answer["faster"], answer["seen"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (faster, seen) if isinstance(faster, bool) and isinstance(seen, str) and seen.isprintable() else None


def _save(path: Path, answer: tuple[bool, str]) -> tuple[bool, str]:
    """Save the answer and return it; if another process saved one first, return that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"faster": answer[0], "seen": answer[1]}).encode()
        try:
            write_new(path, text)
        except FileExistsError:
            if (first := _saved(path)) is not None:
                return first
            write_atomic(path, text, shared=True)  # replaces an unreadable file
    except OSError:  # a full or read-only disk: only this process uses the answer
        pass
    return answer


@functools.lru_cache(maxsize=8)
def _probe(threads: int) -> tuple[bool, str]:
    """Measure both libraries for about 30 ms. ``threads``, torch's current number, only keys the cache."""
    generator = torch.Generator().manual_seed(0)
    shape = (_SIZE, _SIZE)
    x, weight, grad = (torch.randn(shape, generator=generator) for _ in range(3))
    bias = torch.randn(_SIZE, generator=generator)
    theirs = (lambda: F.linear(x, weight, bias), lambda: grad.mm(weight), lambda: grad.t().mm(x))
    ours = (lambda: product(x, weight, bias), lambda: product(grad, weight.t()), lambda: product(grad.t(), x.t()))
    with torch.no_grad():
        pairs = [(one(), other()) for one, other in zip(theirs, ours, strict=True)]
        if not all((one - other).abs().max() <= TOLERANCE * one.abs().max() for one, other in pairs):
            return False, "a difference between oneDNN's product and torch's"
        times = [(_seconds(theirs), _seconds(ours)) for _ in range(_REPEATS)]  # alternating; the minimum excludes interruptions
    torch_us, onednn_us = (min(column) * 1e6 for column in zip(*times, strict=True))
    return onednn_us <= GAIN * torch_us, f"{onednn_us:.0f} us with oneDNN, {torch_us:.0f} us with torch"


def offered() -> tuple[str, ...]:
    """List the values of OFFRL_LINEAR, the linear products, that this build of torch supports on this processor."""
    return ("torch", "onednn") if present() else ("torch",)


def _dense(matrix: Tensor) -> Tensor:
    """Return the matrix without gaps: column slices of a wider matrix would use a reference kernel, some 100 times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _seconds(functions: tuple) -> float:
    start = time.perf_counter()
    for function in functions:
        function()
    return time.perf_counter() - start
