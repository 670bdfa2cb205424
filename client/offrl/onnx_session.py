"""Sessions of onnxruntime for policies: load and run a graph, and turn the exceptions of onnxruntime into errors of offrl."""

from __future__ import annotations

import numpy as np
import onnxruntime

from offrl.errors import CheckFailed, InvalidInput
from offrl.onnx_file import FETCH_AGAIN, check


def session_options() -> onnxruntime.SessionOptions:
    """Return options for one thread that never spins: a batch of one gains nothing from a second, and the other cores stay free."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what the check of `offrl.onnx_file` reads
    # onnxruntime also raises its errors; here it would print them to the caller's stderr, with unescaped names from the file.
    options.log_severity_level = 4
    return options


def load_session(data: bytes, name: str) -> onnxruntime.InferenceSession:
    """Open a session of an ONNX file from any program; raise `InvalidInput` if it is damaged or refers to other files.

    Args:
        data: the file's bytes.
        name: the file's name in messages.
    """
    check(data, name)
    try:
        return onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # the only base class that onnxruntime's exceptions share
        reason = first_line(error)
        if type(error).__name__ in ("InvalidProtobuf", "InvalidArgument") or not data:
            raise InvalidInput(f"{name} is not an ONNX file, or it is damaged", hint=FETCH_AGAIN) from None
        raise InvalidInput(
            f"onnxruntime {onnxruntime.__version__} cannot load {name}: {reason}",
            hint="if the file is whole, update onnxruntime: pip install -U onnxruntime",
        ) from None


def run(session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the graph and return its outputs; raise `CheckFailed` if it fails on these inputs."""
    try:
        return session.run(outputs, inputs)
    except Exception as error:  # the only base class that onnxruntime's exceptions share
        raise run_failed(error) from error


def run_failed(error: Exception) -> CheckFailed:
    """Return the `CheckFailed` for an exception of a run; the caller raises it from ``error``."""
    return CheckFailed(
        f"the policy's graph fails: {first_line(error)}", hint="the observation is far from the training data, or the file is damaged"
    )


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


__all__ = ["first_line", "load_session", "run", "run_failed", "session_options"]
