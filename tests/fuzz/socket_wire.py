"""Recorded sessions, mutated, against a real daemon over its socket: ``socket_wire.py --messages 1000000`` (see `make fuzz`).

A session is recorded by a real client through a relay. Each batch sends mutated sessions over several connections, and then a healthy
connection must be answered; the daemon's memory is noted. At the end jobs and datasets are removed by ordinary requests, the daemon is
started again (which is when forgotten uploads are deleted), and its state folder must hold what it held at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import zmq
from daemon_harness import Daemon, until
from wire_mutations import frames, session

from offrl import Client, wire
from offrl.errors import OffrlError

SETTINGS = """
log_level = "error"
input_memory_mb = 256
[slots]
train = 0
light = 2
[workers]
spare = 0
[uploads]
open = 64
expire_hours = 1e-6
keep_free_bytes = 0
[audit]
max_bytes = 65536
keep = 1
"""
IN_FLIGHT = 40  # of a connection: below the daemon's limit, so that most are looked at and not refused
SWEEP = 20  # batches between two removals of what the sessions have made
TRANSIENT = ("run", "cache")


class Relay:
    """Forward the messages of clients and daemon, and record the requests."""

    def __init__(self, url: str, upstream: str) -> None:
        self.requests: list[bytes] = []
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(url)
        self._upstream, self._backs = upstream, {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        while not self._ended.is_set():
            for socket, _ in poller.poll(50):
                if socket is not self._front:
                    self._front.send_multipart([self._backs[socket], *socket.recv_multipart()])
                    continue
                client, number, *parts = self._front.recv_multipart()
                self.requests.append(wire.encode_request(wire.decode_request(*parts)))
                back = next((back for back, name in self._backs.items() if name == client), None)
                if back is None:
                    back = self._context.socket(zmq.DEALER)
                    back.connect(self._upstream)
                    poller.register(back, zmq.POLLIN)
                    self._backs[back] = client
                back.send_multipart([number, *parts])

    def close(self) -> list[bytes]:
        """Return the recorded requests."""
        self._ended.set()
        self._thread.join()
        self._context.destroy(linger=0)
        return self.requests


def record(daemon: Daemon, folder: Path) -> list[bytes]:
    """Record the requests of a typical client session."""
    relay = Relay(f"ipc://{folder}/relay.sock", daemon.url)
    source = folder / "recorded.npz"
    np.savez(source, observation=np.zeros((200, 3), np.float32))
    with Client(f"ipc://{folder}/relay.sock") as client:
        client.ping()
        client.algos()
        client.overview()
        client.settings()
        list(client.audit())
        client.datasets.add("recorded", source)
        client.datasets.append("recorded", source)
        client.datasets.ls()
        client.datasets.show("recorded")
        job = client.submit("anything", dataset="recorded", steps=3, config={"behaviour": "normal"}, key="recorded")
        client.submit("anything", dataset="recorded", steps=3, after=job, priority=3)
        client.jobs(kind="all")
        job.info()
        job.log()
        job.metrics()
        client.queue()
        client.pause_queue()
        client.resume_queue()
        for action in (job.pin, job.unpin, job.pause, job.resume, job.cancel, job.retry, job.cancel):
            action()
        client.datasets.export("recorded", folder / "out.npz", format="npz")
        for action in (lambda: job.fetch(folder / "policy.onnx"), lambda: client.datasets.rm("recorded"), lambda: client.job("none")):
            with contextlib.suppress(OffrlError):  # a refusal is a part of the session as well
                action()
    return [_quick(body) for body in relay.close()]


def _quick(body: bytes) -> bytes:
    """Return the request without waiting for news, since hundreds of such requests would only wait."""
    message = msgpack.unpackb(body)
    if message.get("wait_s"):
        message["wait_s"] = 0.01
    return msgpack.packb(message)


class Fuzz:
    """Send batches and record their results."""

    def __init__(self, daemon: Daemon, recorded: list[bytes], seed: int) -> None:
        self.daemon, self.recorded, self.chance = daemon, recorded, random.Random(seed)
        self.sent = 0
        self.answers: Counter[str] = Counter()
        self.pings: list[float] = []
        self.memory: list[tuple[int, int]] = []  # messages sent, bytes of the daemon's memory
        self._batches = 0

    def batch(self, connections: int = 4, sessions: int = 3) -> None:
        """Sessions over several connections at once, some of which break off; then a ping."""
        poller = zmq.Poller()
        work: dict[zmq.Socket, list[bytes]] = {}
        for _ in range(connections):
            socket = self.daemon.context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self.daemon.url)
            poller.register(socket, zmq.POLLIN)
            work[socket] = [body for _ in range(sessions) for body in session(self.recorded, self.chance)]
        waiting = dict.fromkeys(work, 0)
        end = time.monotonic() + 0.5
        while any(work.values()) or (any(waiting.values()) and time.monotonic() < end):
            for socket, left in work.items():
                while left and waiting[socket] < IN_FLIGHT:
                    number = b"%d" % self.sent
                    try:
                        socket.send_multipart(frames(number, left.pop(0), self.chance), zmq.NOBLOCK)
                    except zmq.Again:
                        left.clear()
                    self.sent += 1
                    waiting[socket] += 1
                if self.chance.random() < 0.01:
                    left.clear()  # a client that is gone in the middle of its session, with answers under way
                    waiting[socket] = 0
            if any(work.values()):
                end = time.monotonic() + 0.5
            for socket, _ in poller.poll(20):
                while True:
                    try:
                        answer = socket.recv_multipart(zmq.NOBLOCK)
                    except zmq.Again:
                        break
                    waiting[socket] = max(0, waiting[socket] - 1)
                    self._note(answer[-1])
            if time.monotonic() > end:
                waiting = dict.fromkeys(work, 0)
        for socket in work:
            socket.close()
        start = time.monotonic()
        self.daemon.ask(wire.Ping(), seconds=20)
        self.pings.append(time.monotonic() - start)
        self._batches += 1
        if self._batches % SWEEP == 0:
            self.sweep()
            self.memory.append((self.sent, self._resident()))

    def _note(self, body: bytes) -> None:
        try:
            wire.decode_reply(body, wire.Done)
            self.answers["ok"] += 1
        except OffrlError as error:
            self.answers[error.code] += 1

    def sweep(self) -> None:
        """Remove what the sessions created, by requests, while the queue runs."""
        daemon = self.daemon
        daemon.ask(wire.ControlQueue(action="resume"))
        while jobs := daemon.ask(wire.ListJobs(kind="all", limit=500)).jobs:
            for job in reversed(jobs):
                for action in ("cancel", "unpin", "remove"):
                    try:
                        if action != "cancel" or not job.state.ended:
                            daemon.ask(wire.ControlJob(job=job.job, action=action))
                        if action == "cancel":
                            daemon.wait(job.job)
                    except OffrlError as error:
                        self.answers[f"sweep {error.code}"] += 1
        for dataset in daemon.ask(wire.ListDatasets()).datasets:
            daemon.ask(wire.RemoveDataset(name=dataset.name))

    def _resident(self) -> int:
        assert self.daemon.process is not None
        with open(f"/proc/{self.daemon.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    def slope(self) -> float:
        """Return bytes of memory per message, by least squares over the last two thirds."""
        points = np.array(self.memory[len(self.memory) // 3 :], np.float64)
        return float(np.polyfit(points[:, 0], points[:, 1], 1)[0]) if len(points) > 2 else 0.0


def held(state: Path) -> list[str]:
    """Every file and folder of the state folder that lasts; the daemon may be deleting meanwhile."""
    found = []
    for folder, folders, files in os.walk(state):
        inner = Path(folder).relative_to(state)
        found += [str(inner / name) for name in (*folders, *files)]
    return sorted(
        name for name in found if Path(name).parts[0] not in TRANSIENT and not Path(name).name.startswith(("audit.log", "queue.sqlite"))
    )


def run(messages: int, seed: int = 0, report=lambda fuzz: None) -> dict:
    """Run the whole test and return its figures. Raise if the daemon dies, hangs, or leaves something behind."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder = Path(name)
        daemon = Daemon(folder, SETTINGS).start()
        try:
            before = held(daemon.state)
            recorded = record(daemon, folder)
            fuzz = Fuzz(daemon, recorded, seed)
            fuzz.sweep()
            fuzz.memory.append((0, fuzz._resident()))
            start = time.monotonic()
            while fuzz.sent < messages:
                fuzz.batch()
                report(fuzz)
            fuzz.sweep()
            seconds = time.monotonic() - start
            fuzz.memory.append((fuzz.sent, fuzz._resident()))
            assert daemon.process is not None
            assert daemon.process.poll() is None, "the daemon has died"
            assert daemon.stop() == 0
            daemon.start()
            until(lambda: held(daemon.state) == before, "what the sessions have left behind is deleted")
            said = daemon.output.read_text()
            assert "Traceback" not in said, said[-3000:]
            pings = sorted(fuzz.pings)
            return {
                "recorded": len(recorded),
                "messages": fuzz.sent,
                "seconds": round(seconds, 1),
                "answers": dict(fuzz.answers.most_common()),
                "pings": len(pings),
                "ping p99, ms": round(1e3 * pings[int(0.99 * len(pings))], 1),
                "longest, ms": round(1e3 * pings[-1], 1),
                "memory at first, MB": round(fuzz.memory[0][1] / 1e6, 1),
                "at last, MB": round(fuzz.memory[-1][1] / 1e6, 1),
                "slope, bytes a message": round(fuzz.slope(), 3),
            }
        finally:
            daemon.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shown = 0

    def progress(fuzz: Fuzz) -> None:
        global shown
        if fuzz.sent // 50_000 > shown:
            shown = fuzz.sent // 50_000
            print(f"{fuzz.sent} messages, {fuzz.memory[-1][1] >> 20} MB, {dict(fuzz.answers.most_common(6))}", file=sys.stderr, flush=True)

    print(json.dumps(run(options.messages, options.seed, progress), indent=1))
