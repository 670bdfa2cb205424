"""A machine of its own for a test: systemd as PID 1 in namespaces, on an overlay of / of which nothing is left afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NAMESPACES = ("-m", "-p", "-u", "-i", "-n", "-C")
DEADLINE_S = 120.0


def missing() -> str:
    """Return why it cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root: it makes namespaces and mounts"
    if not os.access("/lib/systemd/systemd", os.X_OK):
        return "needs systemd in /lib/systemd/systemd"
    if not os.access("/usr/bin/python3", os.X_OK):
        return "needs the system's own /usr/bin/python3"
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run(["/usr/bin/python3", "-c", ask], capture_output=True, text=True)
    if version.stdout.strip() != sysconfig.get_python_version():
        return f"/usr/bin/python3 is {version.stdout.strip()}, this one {sysconfig.get_python_version()}: compiled modules would not fit"
    probe = subprocess.run(["unshare", *NAMESPACES, "--fork", "--kill-child", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return "" if probe.returncode == 0 else f"namespaces cannot be made: {probe.stderr.decode().strip()}"


def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE_S) -> Any:
    """Poll ``condition`` until it is true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come in {seconds:g} s: {what}"
        time.sleep(0.1)
    return value


class Machine:
    """Boot it with `start`; `run` does something in it, `close` ends all its processes."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="offrld-machine-")
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0

    def start(self) -> Machine:
        command = ["unshare", *NAMESPACES, "--fork", "--kill-child", str(HERE / "boot.sh"), self._folder]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._first = int(until(lambda: children.exists() and children.read_text().split(), "PID 1")[0])
        until(lambda: self.run("systemctl is-system-running", check=False).strip() in ("running", "degraded"), "systemd is up")
        return self

    def run(self, command: str, *, check: bool = True, user: str = "", talk: bool = True, seconds: float = DEADLINE_S) -> str:
        """What a shell command on the machine prints, with ``talk`` on stderr as well; AssertionError where it fails."""
        shell = ["/bin/bash", "-c", command] if not user else ["runuser", "-u", user, "--", "/bin/bash", "-c", command]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        done = subprocess.run(
            ["nsenter", "-t", str(self._first), *NAMESPACES, "--", *shell], capture_output=True, text=True, env=environment, timeout=seconds
        )
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{said}"
        return said if talk else done.stdout

    def property(self, name: str, unit: str = "offrld") -> str:
        """A property of a unit as systemctl shows it."""
        return self.run(f"systemctl show -P {name} {unit}").strip()

    def close(self) -> None:
        if self._process is not None:
            if self._first:
                os.kill(self._first, signal.SIGKILL)  # PID 1 takes all its processes with it
            self._process.kill()
            self._process.communicate()
        os.rmdir(self._folder)
