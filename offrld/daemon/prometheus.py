"""Metrics in the format of Prometheus, served over HTTP by threads: the event loop only answers one read for each scrape.

Counters and histograms count events as they happen (`Metrics` is an `Observer`); figures of the queue and the disk are read at each scrape.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from offrl.errors import InvalidInput
from offrld.daemon.queue.job_record import Job
from offrld.daemon.queue.observer import Observer, exit_reason
from offrld.daemon.queue.views import overview

if TYPE_CHECKING:
    from offrld.daemon.app import App

SCRAPE_S = 5.0  # for the queue's part of a scrape, which is left out if it comes later
SOCKET_S = 10.0  # for a scraper to send its request
SCRAPERS = 8  # connections at once; more are closed
LAG_S = 0.5  # between two measurements of the event loop
REASONS = 64  # error codes with a series of their own: a plug-in may invent any number
REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
WAIT_BUCKETS = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
log = logging.getLogger("offrld.metrics")


class Metrics(Observer):
    """Counts events, and serves the counts at ``http://HOST:PORT/metrics`` from `start` to `close`."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, which Prometheus does not use
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "offrld_requests",
            "requests answered, by type and outcome (ok, or the error code)",
            ["type", "outcome"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "offrld_request_seconds",
            "time from a request's arrival to its reply; get_events and read_log wait for news",
            ["type"],
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self._wait = Histogram(
            "offrld_queue_wait_seconds",
            "time from a job's submission to its first worker",
            ["kind"],
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self._starts = Counter("offrld_worker_starts", "worker processes started", ["kind"], registry=self.registry)
        self._exits = Counter(
            "offrld_worker_exits",
            "worker processes ended, by the job's outcome (stopped: back in the queue) or error code",
            ["kind", "reason"],
            registry=self.registry,
        )
        self._lag = Histogram(
            "offrld_event_loop_lag_seconds",
            "delay of the event loop's scheduled callbacks",
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self._reasons: set[str] = set()
        self._server: _Server | None = None
        self._measuring: asyncio.Task[None] | None = None

    def start(self, app: App, host: str, port: int) -> str:
        """Serve; return the address. Raises `InvalidInput` if the system refuses it. Call it in the event loop."""
        self.registry.register(_Queue(app, asyncio.get_running_loop()))
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = make_server(
                host, port, make_wsgi_app(self.registry), type("_Bound", (_Server,), {"address_family": family}), _Handler
            )
        except (OSError, OverflowError) as error:
            raise InvalidInput(
                f"metrics cannot be served at {host}:{port}: {getattr(error, 'strerror', None) or error}",
                hint="choose another metrics_port, or 0 for none",
            ) from None
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        self._measuring = asyncio.get_running_loop().create_task(self._measure())
        shown = f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    # --------------------------------------------------------------------------------------------------------------- counting
    def request_answered(self, name: str, outcome: str, seconds: float) -> None:
        self._requests.labels(name, outcome).inc()
        self._seconds.labels(name).observe(seconds)

    def worker_started(self, job: Job) -> None:
        self._starts.labels(job.kind).inc()
        if job.attempt == 1:
            self._wait.labels(job.kind).observe(max(0.0, time.time() - job.created_at))

    def worker_ended(self, job: Job) -> None:
        reason = exit_reason(job)
        if reason not in self._reasons and len(self._reasons) >= REASONS:
            reason = "other"
        self._reasons.add(reason)
        self._exits.labels(job.kind, reason).inc()

    async def _measure(self) -> None:
        while True:
            expected = time.monotonic() + LAG_S
            await asyncio.sleep(LAG_S)
            self._lag.observe(max(0.0, time.monotonic() - expected))


class _Queue(Collector):
    """Figures of the queue, the uploads and the disk, read for every scrape (in the scraper's thread)."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self._app, self._loop = app, loop

    def describe(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily("offrld_jobs", "jobs in the queue, by state and kind", labels=["state", "kind"])
        yield GaugeMetricFamily("offrld_job_updates_per_second", "updates per second of each running job", labels=["job", "algorithm"])
        yield GaugeMetricFamily("offrld_job_step", "updates done by each running job", labels=["job", "algorithm"])
        yield GaugeMetricFamily("offrld_queue_oldest_seconds", "waiting time of the longest-waiting job; 0: none waits")
        yield GaugeMetricFamily("offrld_queue_paused", "1 while the whole queue is paused, else 0")
        yield GaugeMetricFamily("offrld_datasets", "datasets")
        yield GaugeMetricFamily("offrld_datasets_bytes", "total size of all datasets")
        yield GaugeMetricFamily("offrld_uploads_open", "unfinished uploads")
        yield GaugeMetricFamily("offrld_disk_free_bytes", "free space on the disk of the state folder")
        yield GaugeMetricFamily("offrld_disk_size_bytes", "size of the disk of the state folder")
        yield GaugeMetricFamily("offrld_uptime_seconds", "time since the service was started")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        empty = {family.name: family for family in self.describe()}
        single: dict[str, float] = {"offrld_uptime_seconds": time.monotonic() - self._app.started}
        with self._app.passes.one("the disk's part of the metrics"):
            disk = shutil.disk_usage(self._app.state.root)
            single |= {"offrld_disk_free_bytes": disk.free, "offrld_disk_size_bytes": disk.total}
            single["offrld_uploads_open"] = self._app.uploads.unfinished()
        try:
            totals = asyncio.run_coroutine_threadsafe(self._app.database.survey(overview.totals), self._loop).result(SCRAPE_S)
        except Exception as error:  # a scrape without the queue still shows that the service runs
            log.warning("a scrape got no answer from the queue: %s", error or type(error).__name__)
        else:
            for (state, kind), count in totals.jobs.items():
                empty["offrld_jobs"].add_metric([state, kind], count)
            for job in totals.running:
                labels = [job.id, job.spec.get("algorithm") or job.kind]
                empty["offrld_job_step"].add_metric(labels, job.step)
                if job.updates_per_second is not None:
                    empty["offrld_job_updates_per_second"].add_metric(labels, job.updates_per_second)
            single["offrld_queue_oldest_seconds"] = max(0.0, time.time() - totals.oldest) if totals.oldest is not None else 0.0
            single["offrld_queue_paused"] = int(totals.paused)
            single["offrld_datasets"], single["offrld_datasets_bytes"] = totals.datasets, totals.dataset_bytes
        for name, value in single.items():
            empty[name].add_metric([], value)
        yield from empty.values()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """One thread for each connection; there are few."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(SCRAPERS)
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        # Like HTTPServer, but without the look-up of the host's name, which may wait for a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection for metrics failed", exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = SOCKET_S

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
