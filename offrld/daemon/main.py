"""The entry point ``offrld``: read the settings, lock the state folder, serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from offrl import streams, wire
from offrl.address import socket_url, usual_state_dirs
from offrl_store.errors import OffrlError
from offrld.daemon import logs, settings_list, startable, watchdog
from offrld.daemon.app import App, version
from offrld.daemon.config import Settings, Sources, load_with_sources
from offrld.daemon.notify import notify
from offrld.daemon.queue.observer import Observer
from offrld.daemon.server import Server
from offrld.daemon.transport import memory_guard
from offrld.daemon.transport.endpoint import group_id
from offrld.executors.local import LocalExecutor
from offrld.state.folder import StateFolder

log = logging.getLogger("offrld")
PRINTS = {"--default-config", "--print-config", "--check-config", "--version", "--help", "-h", "restore"}  # arguments that print to stdout


def main(argv: Sequence[str] | None = None, *, executor: LocalExecutor | None = None) -> int:
    """Run the daemon in the foreground; return its exit status. Tests pass another ``executor``."""
    if argv is None:
        arguments_here = sys.argv[1:]
        return streams.run(lambda: main(arguments_here), needs_stdout=bool(set(arguments_here) & PRINTS))
    argv = list(argv)
    if argv[:1] == ["restore"]:
        from offrl.cli import run

        return run(argv)
    parser = _Parser(prog="offrld", description="The service that owns the datasets and runs the jobs.")
    parser.add_argument("--state-dir", metavar="D", help="folder of queue, datasets and jobs (default: $OFFRLD_STATE_DIR, or the user's)")
    parser.add_argument("--bind", metavar="URL", help="where to listen (default: ipc://STATE_DIR/run/offrld.sock)")
    parser.add_argument("--config", metavar="FILE", help="file with the settings (default: STATE_DIR/offrld.toml, if it exists)")
    parser.add_argument("--insecure", action="store_true", help="allow a tcp address without keys; loopback only")
    parser.add_argument("--check-config", action="store_true", help="check the settings, and exit")
    parser.add_argument("--default-config", action="store_true", help="print an offrld.toml with every setting at its default, and exit")
    parser.add_argument("--print-config", action="store_true", help="print the resulting settings as JSON, and exit")
    parser.add_argument("--version", action="version", version=f"offrld {version()}")
    parser.add_argument("--banner", action="store_true", help=argparse.SUPPRESS)  # of `offrl serve`
    arguments = parser.parse_args(argv)
    try:
        if arguments.default_config:
            print(settings_list.default_toml(), end="")
            return 0
        settings, sources = load_with_sources(arguments.state_dir, arguments.bind, arguments.config, arguments.insecure)
        if arguments.check_config:
            startable.check(settings)
            verdict = "good" if sources.file.exists() else "not there"
            print(f"{sources.file}: {verdict}; {len(sources.of)} settings given, the others have their defaults")
            return 0
        if arguments.print_config:
            print(wire.SettingList(file=str(sources.file), settings=settings_list.listing(settings, sources)).model_dump_json())
            return 0
        logs.setup(settings.log_level, settings.log_format)
        os.umask(0o077)
        sys.setswitchinterval(0.001)  # a thread that lists 1,000 jobs yields to the event loop after 1 ms, not 5
        startable.check(settings)
        state = StateFolder(settings.state_dir)
        state.prepare(None if settings.socket_group is None else group_id(settings.socket_group))
        state.check()
        lock = state.lock()
        try:
            asyncio.run(_serve(settings, sources, executor or LocalExecutor(), banner=arguments.banner))
        finally:
            os.close(lock)
    except OffrlError as error:
        print(f"error: {logs.escaped(str(error))}", file=sys.stderr)
        return error.exit_status
    return 0


async def _serve(settings: Settings, sources: Sources, executor: LocalExecutor, *, banner: bool) -> None:
    observer, counted = Observer(), None
    if settings.metrics_port:
        from offrld.daemon.prometheus import Metrics

        observer = counted = Metrics()
    memory_guard.settle()
    app = App(settings, executor, observer, sources)
    server = Server(app)
    try:
        address = server.bind(settings)
        if counted is not None:
            log.info("metrics at %s", counted.start(app, settings.metrics_host, settings.metrics_port))
    except OffrlError:
        observer.close()
        await server.close()
        app.log.close()
        app.database.close()
        raise
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await app.supervisor.prepare()
    app.catalog.start()
    tasks = [
        asyncio.create_task(server.run(), name="server"),
        asyncio.create_task(app.supervisor.run(), name="supervisor"),
        asyncio.create_task(app.keeper.run(), name="keeper"),
        asyncio.create_task(_report(app, address), name="watchdog"),
    ]
    stopped = asyncio.create_task(stop.wait(), name="stop")
    log.info("listening on %s, state in %s", address, settings.state_dir)
    if banner:
        _greet(address)
    notify(f"READY=1\nSTATUS=listening on {address}")
    began = time.monotonic()
    await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
    log.info("stopping after %.0f s", time.monotonic() - began)
    notify("STOPPING=1\nSTATUS=waiting for the workers")
    broken = [task for task in tasks if task.done() and not task.cancelled() and task.exception() is not None]
    tasks[0].cancel()  # no new requests
    await app.supervisor.stop()
    for task in (*tasks, stopped):
        task.cancel()
    await asyncio.gather(*tasks, stopped, return_exceptions=True)
    await app.catalog.close()
    await server.close()
    await asyncio.to_thread(observer.close)
    app.database.close()
    app.log.close()
    for task in broken:  # a defect: end with its traceback; systemd restarts the service
        task.result()


def _greet(address: str) -> None:
    """Print the next steps for a user at a terminal."""
    usual = address == socket_url(usual_state_dirs()[0])
    first = "" if usual else f"export OFFRL_URL={address}; "
    print(f"offrld is ready at {logs.escaped(address)}; Ctrl-C ends it", file=sys.stderr)
    print(
        f"in another terminal: {logs.escaped(first)}offrl datasets add NAME FILE, then offrl submit ALGORITHM --dataset NAME --wait",
        file=sys.stderr,
        flush=True,
    )


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like those of `offrl`."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {logs.escaped(message)}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


async def _report(app: App, address: str) -> None:
    """Run the watchdog, and then wait for ever: a task that ends would stop the service."""
    await watchdog.run(app, address)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
