"""Sessions of onnxruntime for policies: how a graph is loaded and run, and what becomes of the exceptions of onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime

from offrl.errors import CheckFailed, InvalidInput
from offrl.onnx_file import FETCH_AGAIN, check


def session_options() -> onnxruntime.SessionOptions:
    """One thread that never spins: a batch of one gains nothing from a second, and the robot's other cores stay free."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what the check of `offrl.onnx_file` reads
    # Errors are raised as well. onnxruntime would write them to the caller's stderr, with the names in the file as they are.
    options.log_severity_level = 4
    return options


def load_session(data: bytes, name: str) -> onnxruntime.InferenceSession:
    """A session of an ONNX file's bytes, whoever wrote it; raises `InvalidInput` for one that is damaged or names other files.

    Args:
        name: of the file, for the message.
    """
    check(data, name)
    try:
        return onnxruntime.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # onnxruntime's classes share no base but Exception
        reason = first_line(error)
        if type(error).__name__ in ("InvalidProtobuf", "InvalidArgument") or not data:
            raise InvalidInput(f"{name} is not an ONNX file, or a damaged one", hint=FETCH_AGAIN) from None
        raise InvalidInput(
            f"onnxruntime {onnxruntime.__version__} cannot load {name}: {reason}",
            hint="if the file is whole, update onnxruntime: pip install -U onnxruntime",
        ) from None


def run(session: onnxruntime.InferenceSession, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs for inputs; raises `CheckFailed` if the graph fails on them."""
    try:
        return session.run(outputs, inputs)
    except Exception as error:  # onnxruntime's classes share no base but Exception
        raise run_failed(error) from error


def run_failed(error: Exception) -> CheckFailed:
    """The error to raise for what onnxruntime raises in a run; its cause is ``error``."""
    return CheckFailed(
        f"the policy's graph fails: {first_line(error)}", hint="the observation is far from its data, or the file is damaged"
    )


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or the name of its class."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


__all__ = ["first_line", "load_session", "run", "run_failed", "session_options"]
