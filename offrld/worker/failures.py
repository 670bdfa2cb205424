"""Turn any exception that ends a job into the ``{code, message, hint}`` of its end event."""

from __future__ import annotations

import errno
import sys
import traceback

from offrl.errors import EnvironmentFailed
from offrl_store.errors import OffrlError

NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
MEMORY_HINT = "use a smaller batch_size or fewer seeds, or a machine with more memory"
DECODING_HINT = "split the file into more or shorter episodes, or raise workers.import_memory_mb in offrld.toml"


def to_error(error: BaseException, *, decodes: bool = False) -> dict[str, str]:
    """Return the error as the user sees it; write the traceback of an unexpected one to the log.

    ``decodes``: whether the job reads or writes data files, under the memory limit of such jobs.
    """
    if isinstance(error, OffrlError):
        report_cause(error)
        return _error(error.code, error.message, error.hint)
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    if _out_of_memory(error):
        return _error("out_of_memory", f"out of memory: {_line(error)}", DECODING_HINT if decodes else MEMORY_HINT)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return _error("disk_full", f"the disk is full{where}: {error.strerror}", "free some space, then `offrl retry` the job")
    return _error("internal", f"{type(error).__name__}: {_line(error)}", "a defect in offrld: `offrl logs` shows the traceback")


def report_cause(error: OffrlError) -> None:
    """Write the traceback of an environment's own error into the log, for its author."""
    if isinstance(error, EnvironmentFailed) and error.__cause__ is not None:
        traceback.print_exception(error.__cause__, file=sys.stderr)
        sys.stderr.flush()


def _error(code: str, message: str, hint: str) -> dict[str, str]:
    return {"code": code, "message": message, "hint": hint}


def _line(error: BaseException) -> str:
    """Return the first line of the error's text, where libraries name the problem."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:500]


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is the GPU's; the CPU allocator raises a plain RuntimeError. Names are compared, to avoid an import of torch.
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
