"""The worker process: claim the job that the first line of stdin names, run it, report how it ended.

``python -m offrld.worker`` speaks JSON lines: control messages on stdin, events on stdout; its stderr is the job's log. Exit
status 0 after an end event; `EXIT_STOPPED` without one, where the daemon is gone or another worker has the job.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from offrld.worker.control import EXIT_STOPPED, Control, Stopped

# One module per kind of job, imported only for a job of that kind: an import job never loads torch.
KINDS = {
    "train": "offrld.worker.train",
    "import": "offrld.worker.import_dataset",
    "export": "offrld.worker.export_policy",
    "dataset_export": "offrld.worker.dataset_export",
}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
END_STATES = {"pause": "paused", "cancel": "cancelled"}


def main() -> int:
    """Run one job; returns the exit status of the process."""
    started = time.perf_counter()
    control_pipe, event_pipe = _take_pipes()
    control = Control(control_pipe)
    try:
        start = control.read_start()
    except Stopped:
        return EXIT_STOPPED
    except ValueError as error:
        print(f"offrld.worker is started by offrld, with a start message on stdin: {error}", file=sys.stderr)
        return 2
    control.listen()
    threads = str(start["spec"].get("threads") or 1)
    for variable in THREAD_VARIABLES:  # read by the libraries when they are loaded, so before any of them is
        os.environ[variable] = threads
    try:
        return _run(start, control, event_pipe, started)
    finally:
        control.finished()


def _run(start: dict[str, Any], control: Control, event_pipe: int, started: float) -> int:
    from offrld.worker.failures import to_error
    from offrld.worker.report import Reporter
    from offrld.worker.runfolder import Fenced, StateFolder

    state = StateFolder(start["state_dir"])
    run = state.run(start["job"])
    try:
        run.claim(int(start["attempt"]), control)
    except Fenced as error:  # another worker writes this folder: not a word into it, nor to the daemon
        print(f"attempt {start['attempt']} of job {start['job']} gives up: {error}", file=sys.stderr)
        return EXIT_STOPPED
    except Stopped as stopped:
        if stopped.reason in END_STATES:
            Reporter(event_pipe, None).end(END_STATES[stopped.reason])
            return 0
        return EXIT_STOPPED
    report = Reporter(event_pipe, run.events)
    try:
        from pydantic import TypeAdapter

        from offrl.job import JobSpec
        from offrld.worker.job import WorkerJob

        job = WorkerJob(
            id=start["job"], attempt=int(start["attempt"]), spec=TypeAdapter(JobSpec).validate_python(start["spec"]),
            snapshot=start.get("snapshot"), import_roots=tuple(Path(root) for root in start.get("import_roots") or ()),
            state=state, run=run, control=control, report=report, started=started,
        )  # fmt: skip
        control.check()
        reason = importlib.import_module(KINDS[job.spec.kind]).run(job)
    except Stopped as stopped:
        if stopped.reason not in END_STATES:
            # No end event: the daemon, when it is back, finds a job that still runs, and queues it again.
            print("stopped: the daemon is gone, or the worker was told to terminate", file=sys.stderr, flush=True)
            return EXIT_STOPPED
        report.end(END_STATES[stopped.reason])
    except BaseException as error:
        described = to_error(error)
        print(f"failed: {described['message']}", file=sys.stderr, flush=True)
        report.end("failed", described)
    else:
        report.end("succeeded", reason=reason or "")
    return 0


def _take_pipes() -> tuple[int, int]:
    """Move the two pipes away from 0 and 1, so that nothing else reads or prints into the protocol; children do not get them."""
    control_pipe, event_pipe = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return control_pipe, event_pipe


if __name__ == "__main__":
    status = main()
    # Past this point nothing is left to do; tearing down torch and its threads takes longer than everything before it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
