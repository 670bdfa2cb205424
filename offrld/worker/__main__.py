"""The worker process: claim the job that the first line of stdin names, run it, and report how it ended.

``python -m offrld.worker`` exchanges JSON lines: it reads control messages from stdin and writes events to stdout. Its stderr is the job's
log. The exit status is 0 after an end event, and `EXIT_STOPPED` without one: the daemon is gone, or another worker has the job.

With ``--spare`` it loads what a train job needs, reports ``ready``, and waits for the first line.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrld.worker.control import EXIT_STOPPED, Control, Stopped

# Functions import what they need: the numbers of threads below take effect only if they are set before NumPy and torch load.
if TYPE_CHECKING:
    from offrld.state.run_folder import RunFolder

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPARE_THREADS = 1  # libraries read the number when they load, so a spare worker serves only jobs with this number of threads
END_STATES = {"pause": "paused", "cancel": "cancelled"}


def main() -> int:
    """Run one job and return the exit status of the process."""
    started = time.perf_counter()
    control_pipe, event_pipe = _take_pipes()
    control = Control(control_pipe)
    spare = "--spare" in sys.argv[1:]
    if spare:
        _set_threads(SPARE_THREADS)
        from offrld.worker.warm import warm

        warm()
        with contextlib.suppress(OSError):  # the daemon is gone: the next read sees the end of the pipe
            os.write(event_pipe, b'{"type": "ready"}\n')
    try:
        start = control.read_start()
    except Stopped:
        return EXIT_STOPPED
    except ValueError as error:
        print(f"only offrld starts offrld.worker, with a start message on stdin: {error}", file=sys.stderr)
        return 2
    if spare:
        started = time.perf_counter()
    _settle(start)
    control.pinned = tuple(start.get("pinned") or ())
    control.listen(**({"stop_s": float(start["stop_s"])} if "stop_s" in start else {}))
    if not spare:
        _set_threads(start["spec"].get("threads") or 1)
    try:
        return _run(start, control, event_pipe, started)
    finally:
        control.finished()


def _set_threads(count: int) -> None:
    for variable in THREAD_VARIABLES:  # the libraries read them once, when they load
        os.environ[variable] = str(count)


def _settle(start: dict[str, Any]) -> None:
    """Enter the job's folder, write to its log, and set its environment: a spare worker starts without them."""
    if "log" in start:
        log = os.open(start["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        sys.stderr.flush()
        os.dup2(log, 2)
        os.dup2(log, 1)
        os.close(log)
    if "folder" in start:
        os.chdir(start["folder"])
    os.environ.update(start.get("environment") or {})
    # Write the stacks of all threads into the log when native code crashes, and when the daemon asks before it ends a hung job.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def _run(start: dict[str, Any], control: Control, event_pipe: int, started: float) -> int:
    from offrld.state.files import remove
    from offrld.state.folder import StateFolder
    from offrld.worker.claim import Fenced, claim
    from offrld.worker.failures import to_error
    from offrld.worker.report import Reporter

    state = StateFolder(Path(start["state_dir"]))
    run = state.run(start["job"])
    try:
        claim(run, int(start["attempt"]), control)
    except Fenced as error:  # another worker writes into this folder: write neither there nor to the daemon
        print(f"attempt {start['attempt']} of job {start['job']} gives up: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except Stopped as stopped:
        if stopped.reason in END_STATES:
            Reporter(event_pipe, None).end(END_STATES[stopped.reason])
            return 0
        return EXIT_STOPPED
    report = Reporter(event_pipe, run.events)
    report.busy("loading")
    control.report_life(report.alive, lambda: _last_checkpoint(run))
    try:
        from pydantic import TypeAdapter

        from offrl.job import KINDS, JobSpec
        from offrld.worker.budget import limit_disk, limit_memory
        from offrld.worker.confine import confine
        from offrld.worker.job import WorkerJob

        job = WorkerJob(
            id=start["job"],
            attempt=int(start["attempt"]),
            spec=TypeAdapter(JobSpec).validate_python(_placed(start)),
            snapshot=start.get("snapshot"),
            import_roots=tuple(Path(root) for root in start.get("import_roots") or ()),
            state=state,
            run=run,
            control=control,
            report=report,
            started=started,
            keep_checkpoints=int(start.get("keep_checkpoints") or 0),
        )
        control.check()
        if not confine(start, state, run):
            print("this kernel cannot restrict the files that a worker opens (no Landlock)", file=sys.stderr, flush=True)
        limit_disk(start, state)
        limit_memory(start)
        try:
            reason = importlib.import_module(KINDS[job.spec.kind].worker).run(job)
        finally:
            remove(run.temporary)
    except Stopped as stopped:
        if stopped.reason not in END_STATES:
            # No end event: when the daemon is back, it finds a job that still runs, and queues it again.
            print("stopped: the daemon is gone, or the worker was terminated", file=sys.stderr, flush=True)
            return EXIT_STOPPED
        report.end(END_STATES[stopped.reason])
    except BaseException as error:
        described = to_error(error, decodes=_decodes(start["spec"]["kind"]))
        print(f"failed: {described['message']}", file=sys.stderr, flush=True)
        report.end("failed", described)
    else:
        report.end("succeeded", reason=reason or "")
    return 0


def _decodes(kind: str) -> bool:
    from offrl.job import KINDS

    return kind in KINDS and KINDS[kind].decodes


def _placed(start: dict[str, Any]) -> dict[str, Any]:
    """Return the specification with the device that the daemon chose; the worker sees no other card."""
    return {**start["spec"], "device": start["device"]} if start.get("device") else start["spec"]


def _last_checkpoint(run: RunFolder) -> str:
    steps = run.checkpoint_steps()
    return f"the job will continue from the checkpoint at step {steps[-1]}" if steps else "there is no checkpoint yet"


def _take_pipes() -> tuple[int, int]:
    """Move the two pipes away from descriptors 0 and 1: nothing else may read from the protocol or print into it.

    Child processes do not inherit them.
    """
    control_pipe, event_pipe = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return control_pipe, event_pipe


if __name__ == "__main__":
    status = main()
    # The work is done; tearing down torch and its threads would take longer than everything before it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
