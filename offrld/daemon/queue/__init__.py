"""The life of a job in the queue: submit, claim, control, finish. Each function is one transaction on the database.

A claim never deletes or hides the row. Every change of state writes its numbered event in the same transaction.
"""

from offrld.daemon.queue.claiming import Full, claim, keep_peak, next_start, order, running, sizes
from offrld.daemon.queue.control import REMOVED, control, purge, remove, users
from offrld.daemon.queue.ending import finish, progress
from offrld.daemon.queue.moves import UNFINISHED
from offrld.daemon.queue.pausing import pause, paused, resume
from offrld.daemon.queue.submission import by_key, submit

__all__ = [
    "REMOVED", "UNFINISHED", "Full", "by_key", "claim", "control", "finish", "keep_peak", "next_start", "order", "pause", "paused",
    "progress", "purge", "remove", "resume", "running", "sizes", "submit", "users",
]  # fmt: skip
