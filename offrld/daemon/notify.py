"""Notifications to systemd: READY, STATUS, WATCHDOG, STOPPING (protocol: `man sd_notify`). Without systemd they do nothing."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> bool:
    """Send a message such as ``READY=1\\nSTATUS=listening``; return False if nobody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):  # abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.sendall(message.encode())
    except OSError:
        return False
    return True


def watchdog_interval() -> float | None:
    """Return the seconds between two signs of life (half of systemd's limit), or None if systemd expects none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) > 0 else None
