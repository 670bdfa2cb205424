"""A limit on the time of one call into an environment. It costs one reading of the clock per call, and one thread in all.

The thread checks at intervals how long the call has taken. If it takes too long, the thread sends the main thread a signal, whose handler
raises in the middle of the call: that ends everything that waits or computes in Python. It does not end native code that never returns:
then the thread calls ``given_up``, to save what can be saved.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from offrl.errors import EnvironmentFailed, InvalidInput

GIVE_UP_S = 5.0  # from the signal to giving up


class StepWatch:
    """Use as a context; `watched` wraps a function whose calls are limited.

    Args:
        seconds: the longest that a call may take.
        given_up: called with the message if the call does not end even then.

    Raises:
        InvalidInput: seconds are not a positive number, or this is not the main thread, which alone receives signals.
    """

    def __init__(self, seconds: float, given_up: Callable[[str], None] | None = None) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
            raise InvalidInput(f"step_timeout_s is {seconds!r}", hint="pass seconds, a positive number")
        if threading.current_thread() is not threading.main_thread():
            raise InvalidInput("a step time-out works in the main thread only", hint="collect there, or in worker processes")
        self._seconds, self._given_up = float(seconds), given_up
        self._since: float | None = None
        self._what = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step watch", daemon=True)

    def watched(self, call: Callable[..., Any], what: str) -> Callable[..., Any]:
        """``call`` with the limit; ``what`` names it in the message."""

        def limited(*arguments: Any, **options: Any) -> Any:
            self._what, self._since = what, time.monotonic()
            try:
                return call(*arguments, **options)
            finally:
                self._since = None

        return limited

    def __enter__(self) -> StepWatch:
        self._before = signal.signal(signal.SIGALRM, self._raise)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._since = None
        self._done.set()
        self._thread.join()
        signal.signal(signal.SIGALRM, self._before)

    def _raise(self, number: int, frame: object) -> None:
        if self._since is not None:  # else the call has returned in the meantime
            raise EnvironmentFailed(self._message(), hint="a longer step time-out, or an environment that does not hang")

    def _message(self) -> str:
        return f"{self._what} of the environment has not come back for {self._seconds:g} s"

    def _run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None  # the main thread has started
        signalled: float | None = None  # start of the call that was sent a signal
        while not self._done.wait(min(self._seconds / 4, 1.0)):
            since = self._since
            late = -1.0 if since is None else time.monotonic() - since - self._seconds
            if late < 0:
                continue
            if signalled != since:
                signalled = since
                signal.pthread_kill(main, signal.SIGALRM)
            elif late > GIVE_UP_S and self._given_up is not None:
                self._given_up(self._message())
                return


__all__ = ["StepWatch"]
