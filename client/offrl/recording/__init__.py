"""Recording from a robot, or from one's own loop, with the thin client: into a local spool first, and to the daemon when it answers."""

from offrl.recording.recorder import Recorder, RecordingWarning, Status
from offrl.recording.sender import push
from offrl.recording.spool import Spool

__all__ = ["Recorder", "RecordingWarning", "Spool", "Status", "push"]
