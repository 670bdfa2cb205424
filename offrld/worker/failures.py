"""How a job fails: any exception as the ``{code, message, hint}`` that its end event carries."""

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
    """The error as the user sees it; the traceback of an unexpected one goes to the log.

    decodes: the job reads or writes files of data, and has the memory limit of such jobs.
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
    """What an environment has raised, with its traceback, into the log: its author wants to know where."""
    if isinstance(error, EnvironmentFailed) and error.__cause__ is not None:
        traceback.print_exception(error.__cause__, file=sys.stderr)
        sys.stderr.flush()


def _error(code: str, message: str, hint: str) -> dict[str, str]:
    return {"code": code, "message": message, "hint": hint}


def _line(error: BaseException) -> str:
    """The first line of the error's text, which is where libraries say what is wrong."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")[:500]


def _out_of_memory(error: BaseException) -> bool:
    # torch.OutOfMemoryError is the GPU's; the CPU allocator raises a plain RuntimeError. Compared by name: no torch here.
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )
