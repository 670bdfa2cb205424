"""`make bench-wire`: a ping compared with a bare msgpack echo on the same kind of socket, and a large upload while another client pings.

    python -m benchmarks.wire [--json] [--mb 1000] [--folder FOLDER] [--only ping|upload]

In both cases an asyncio ROUTER in another process replies over ipc. They alternate, and the ratio is that of the medians. The upload goes
from a file to the state folder of a daemon, both in FOLDER (default: /dev/shm, so that no disk is measured; it is compared with a plain
write and sync of as many bytes), with all checksums and until it is usable, while a client in another process pings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import psutil
import zmq
import zmq.asyncio

from offrl import Client, upload
from offrld.embedded import embedded_daemon

ROUNDS = 30
PINGS = 200  # of each kind in a round
PAUSE_S = 0.002  # between two pings beside an upload
BLOCK = 1 << 20


# ------------------------------------------------------------------------------------------------------------- other processes
async def echo(url: str) -> None:
    """Do the minimum of the daemon's loop: unpack a message, pack a reply."""
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    socket.bind(url)
    while True:
        client, number, body = await socket.recv_multipart()
        await socket.send_multipart([client, number, msgpack.packb(msgpack.unpackb(body))])


def ping_on(url: str) -> None:
    """Ping until the standard input is closed; then print the seconds of every ping as JSON."""
    os.set_blocking(0, False)
    times = []
    with Client(url) as client:
        client.ping()
        print("ready", flush=True)
        while not _closed():
            start = time.perf_counter()
            client.ping()
            times.append(time.perf_counter() - start)
            time.sleep(PAUSE_S)
    print(json.dumps(times))


def _closed() -> bool:
    try:
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.wire", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# --------------------------------------------------------------------------------------------------------------------- measuring
def pings(client: Client, folder: Path) -> dict[str, float]:
    """Measure microseconds of a ping and of a bare echo, medians over all rounds."""
    url = f"ipc://{folder}/echo.sock"
    server = child("--echo", url)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(url)
    message = {"protocol": 1, "type": "ping"}
    ours: list[float] = []
    bare: list[float] = []

    def bare_ping() -> None:
        socket.send_multipart([b"1", msgpack.packb(message)])
        msgpack.unpackb(socket.recv_multipart()[1])

    try:
        for number in range(ROUNDS + 1):
            for function, into in ((client.ping, ours), (bare_ping, bare)):
                for _ in range(PINGS):
                    start = time.perf_counter()
                    function()
                    if number:  # the first round warms up
                        into.append(time.perf_counter() - start)
    finally:
        context.destroy(linger=0)
        server.terminate()
        server.wait()
    own, other = 1e6 * statistics.median(ours), 1e6 * statistics.median(bare)
    return {"ping, us": own, "bare echo, us": other, "ratio": own / other, "goal": 1.5}


def uploads(client: Client, folder: Path, megabytes: int) -> dict[str, float]:
    """Measure MB/s of an upload, from reading its file until it is usable, and the pings during it."""
    source = folder / "source.bin"
    disk(folder, 3_000_000 * megabytes)  # makes the host of a virtual machine provide the memory before the measurement
    with source.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
        file.flush()
        os.fsync(file.fileno())
    other = child("--ping", client.url)
    assert other.stdout is not None
    other.stdout.readline()
    daemon = next(process for process in psutil.Process().children() if "offrld.daemon.main" in process.cmdline())
    spent = [time.process_time(), sum(daemon.cpu_times()[:2])]
    start = time.perf_counter()
    upload.send(client.connect(), upload.scan(source))
    seconds = time.perf_counter() - start
    spent = [time.process_time() - spent[0], sum(daemon.cpu_times()[:2]) - spent[1]]
    output, _ = other.communicate()
    times = sorted(json.loads(output))
    size = source.stat().st_size
    return {
        "upload, MB/s": size / 1e6 / seconds,
        "goal": 300.0,
        "plain write and sync, MB/s": size / 1e6 / disk(folder, size),
        "client, CPU s a GB": spent[0] / size * 1e9,
        "daemon, CPU s a GB": spent[1] / size * 1e9,
        "ping beside it: p50, ms": 1e3 * times[len(times) // 2],
        "p99, ms": 1e3 * times[int(0.99 * len(times))],
        "longest, ms": 1e3 * times[-1],
        "goal of p99, ms": 50.0,
        "pings": len(times),
    }


def disk(folder: Path, size: int) -> float:
    """Measure the seconds to write and sync ``size`` bytes in a folder."""
    block = os.urandom(BLOCK)
    os.sync()
    start = time.perf_counter()
    with (folder / "plain.bin").open("wb", buffering=0) as file:
        for _ in range(size // BLOCK):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    (folder / "plain.bin").unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--mb", type=int, default=1000, help="size of the upload")
    parser.add_argument("--folder", default="/dev/shm", help="folder of the file and of the daemon's state")
    parser.add_argument("--only", choices=("ping", "upload"))
    parser.add_argument("--echo", help=argparse.SUPPRESS)
    parser.add_argument("--ping", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo:
        asyncio.run(echo(options.echo))
    if options.ping:
        ping_on(options.ping)
        return
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with embedded_daemon(folder / "state") as client:
            client.algos()  # wait until the daemon's describe worker and its spare worker have loaded
            while client.overview().spare != "ready":
                time.sleep(0.1)
            if options.only != "upload":
                result["ping"] = pings(client, folder)
            if options.only != "ping":
                result["upload"] = uploads(client, folder, options.mb)
    if options.json:
        print(json.dumps(result))
        return
    for part, figures in result.items():
        print(f"{part}:")
        for what, figure in figures.items():
            print(f"  {what:26} {figure:10.2f}")


if __name__ == "__main__":
    main()
