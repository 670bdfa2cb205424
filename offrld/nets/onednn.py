"""The matrix product through oneDNN, which on some processors runs float32 products at twice the speed of torch's default library.

On one AMD EPYC with AVX-512, one thread, 256x256 by 256x256: 145 us against 303 us forward, 140 against 301 and 168 against 317 for the
two products of the backward pass. On another (family 25, model 17, the fourth generation) the two are alike: 316 against 333, 310 against
330, 352 against 335. The operation is private to torch, so it is used only where `faster` has seen it present, right and faster.

Two libraries that are about as fast would be chosen by chance, and the choice decides last bits. So the first answer is kept in a file, for
this processor and these versions, and later runs use it.
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

WORTH = 1 << 20  # multiplications below which a call costs more than it gains
NARROW = 16  # outputs below which torch's own products are the faster
GAIN = 0.9  # of torch's time that the probe must not exceed
TOLERANCE = 1e-4  # of the probe, relative to the largest element
_SIZE = 256  # rows, inputs and outputs of the probe
_REPEATS = 15
_MOST_BYTES = 4096  # of a file with an answer


def gains(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of ``x [R, I]`` and ``weight [O, I]`` may go through oneDNN and is large enough to gain by it."""
    outputs, inputs = weight.shape
    return x.dtype is torch.float32 and weight.dtype is torch.float32 and x.numel() * outputs >= WORTH and outputs >= NARROW and inputs > 1


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [R, I]`` times ``weight [O, I]`` transposed, plus ``bias [O]``; without gradient.

    Transposed operands are handed over as they lie: copying them straight would cost 25 us more for 256 x 256.
    """
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


@functools.lru_cache(maxsize=1)
def present() -> bool:
    """Whether this build of torch has the operation, and it takes the arguments that are used here."""
    matrix = torch.ones(NARROW, NARROW)
    try:
        product(matrix, matrix)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True


def faster(threads: int, folder: Path | None = None) -> tuple[bool, str]:
    """Whether oneDNN is present, right and faster on this processor with this number of threads, and the evidence.

    Args:
        folder: where the answer is kept between runs; None: the user's cache (``$XDG_CACHE_HOME/offrld``). A folder that cannot be
            written keeps nothing, and neither does a user without a home.
    """
    if not present():
        return False, "a torch without oneDNN's product"
    folder = user_cache() if folder is None else folder
    if folder is None:
        return _probe(threads)
    path = folder / f"linear-{_circumstances(threads)}.json"
    answer = _saved(path)
    return _save(path, _probe(threads)) if answer is None else answer


def user_cache() -> Path | None:
    """The folder for what this user's processes keep between runs; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offrld"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """Model and instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join({line for line in lines if line.startswith(("model name", "flags", "cpu family", "CPU part", "Features"))})


def _circumstances(threads: int) -> str:
    """Everything that the times depend on, as part of a file's name."""
    variables = [os.environ.get(name, "") for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")]
    parts = [torch.__version__, str(threads), *variables, *sorted(_processor().splitlines())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _saved(path: Path) -> tuple[bool, str] | None:
    """The answer in the file; None if there is no such file, or it holds anything but an answer of this module."""
    try:
        answer = json.loads(read_small(path, _MOST_BYTES))
        faster, seen = answer["faster"], answer["seen"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return (faster, seen) if isinstance(faster, bool) and isinstance(seen, str) and seen.isprintable() else None


def _save(path: Path, answer: tuple[bool, str]) -> tuple[bool, str]:
    """Write the answer, unless another process was first, whose answer then counts."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"faster": answer[0], "seen": answer[1]}).encode()
        try:
            write_new(path, text)
        except FileExistsError:
            if (first := _saved(path)) is not None:
                return first
            write_atomic(path, text, shared=True)  # replaces an unreadable file
    except OSError:  # a disk that is full or read-only: the answer holds for this process alone
        pass
    return answer


@functools.lru_cache(maxsize=8)
def _probe(threads: int) -> tuple[bool, str]:
    """Measure both for about 30 ms, with the ``threads`` that torch has now."""
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
        times = [(_seconds(theirs), _seconds(ours)) for _ in range(_REPEATS)]  # taking turns; the least is what the processor can do
    torchs, onednns = (min(column) * 1e6 for column in zip(*times, strict=True))
    return onednns <= GAIN * torchs, f"{onednns:.0f} us by oneDNN, {torchs:.0f} us by torch"


def offered() -> tuple[str, ...]:
    """The linear products that this build of torch offers on this processor, as OFFRL_LINEAR names them."""
    return ("torch", "onednn") if present() else ("torch",)


def _dense(matrix: Tensor) -> Tensor:
    """The matrix without gaps: columns cut out of a wider one would go through a reference kernel, some 100 times slower."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _seconds(functions: tuple) -> float:
    start = time.perf_counter()
    for function in functions:
        function()
    return time.perf_counter() - start
