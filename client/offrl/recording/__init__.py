"""Recording from a robot, or from one's own loop, with the thin client: a local spool first, and the daemon when it is there."""

from .recorder import Recorder, RecordingWarning, Status
from .sender import push
from .spool import Spool

__all__ = ["Recorder", "RecordingWarning", "Spool", "Status", "push"]
