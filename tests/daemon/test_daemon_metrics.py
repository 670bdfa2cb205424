"""Metrics: a scrape of a real daemon matches what happened, the documented list is complete, and a scraper delays nobody."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from daemon_harness import Daemon, until
from prometheus_client.parser import text_string_to_metric_families

from offrl import wire
from offrl_store.errors import OffrlError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def scrape(port: int) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Sample name -> labels -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found: dict, name: str, **labels: str) -> float:
    return found[name].get(tuple(sorted(labels.items())), 0.0)


@pytest.fixture
def measured(new_daemon: Callable[..., Daemon]) -> tuple[Daemon, int]:
    port = free_port()
    settings = f"metrics_port = {port}\n[slots]\ntrain = 2\n[grace]\ncancel_s = 0.3\nstop_s = 2\n"
    return new_daemon(settings).start(), port


def test_a_scrape_reports_what_happened(measured: tuple[Daemon, int]) -> None:
    daemon, port = measured
    daemon.dataset("a")
    for behaviour in ("normal", "normal", "crash", "fail"):
        daemon.wait(daemon.train("a", behaviour))
    running = daemon.train("a", "hang", steps=70)
    until(lambda: daemon.job(running).step == 1)
    others = [daemon.train("a", "hang") for _ in range(3)]
    daemon.wait(others[0], "running")
    with pytest.raises(OffrlError):
        daemon.ask(wire.GetJob(job="nobody"))
    daemon.connection.raw([b"1", b"nonsense"])
    pings = 7
    for _ in range(pings):
        daemon.ask(wire.Ping())
    found = scrape(port)
    assert value(found, "offrld_jobs", state="succeeded", kind="train") == 2
    assert value(found, "offrld_jobs", state="failed", kind="train") == 2
    assert value(found, "offrld_jobs", state="running", kind="train") == 2
    assert value(found, "offrld_jobs", state="queued", kind="train") == 2
    assert value(found, "offrld_jobs", state="succeeded", kind="import") == 1
    assert value(found, "offrld_job_step", job=running, algorithm="anything") == 1
    assert value(found, "offrld_worker_starts_total", kind="train") == 6
    exits = {(dict(labels)["kind"], dict(labels)["reason"]): count for labels, count in found["offrld_worker_exits_total"].items()}
    trained = {reason: count for (kind, reason), count in exits.items() if kind == "train"}
    assert trained == {"succeeded": 2, "empty_dataset": 1, "worker_crashed": 1}
    assert value(found, "offrld_queue_wait_seconds_count", kind="train") == 6
    assert 0 < value(found, "offrld_queue_oldest_seconds") < 60
    assert value(found, "offrld_requests_total", type="ping", outcome="ok") == pings + 1  # one at its start
    assert value(found, "offrld_request_seconds_count", type="ping") == pings + 1
    assert value(found, "offrld_requests_total", type="get_job", outcome="unknown") == 1
    assert value(found, "offrld_requests_total", type="invalid", outcome="invalid_message") == 1
    assert (value(found, "offrld_datasets"), value(found, "offrld_datasets_bytes")) == (1, 100)
    assert value(found, "offrld_disk_free_bytes") > 0
    resident = psutil.Process(daemon.process.pid).memory_info().rss
    assert 0.5 * resident < value(found, "process_resident_memory_bytes") < 2 * resident
    assert until(lambda: value(scrape(port), "offrld_event_loop_lag_seconds_count") >= 2)
    daemon.ask(wire.OpenUpload(upload="up1", files=[wire.FileEntry(path="a", size=3, sha256="0" * 64)]))
    assert value(scrape(port), "offrld_uploads_open") == 1


def test_a_silent_scraper_delays_nobody(measured: tuple[Daemon, int]) -> None:
    daemon, port = measured
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    daemon.ask(wire.Ping())
    assert scrape(port)["offrld_uptime_seconds"]
    for each in silent:
        each.close()
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]  # more than it has threads for
    process = psutil.Process(daemon.process.pid)
    assert process.num_threads() < 40
    for each in crowd:
        each.close()
    assert until(lambda: _scraped(port))
    assert daemon.stop() == 0


def _scraped(port: int) -> bool:
    try:
        return bool(scrape(port))
    except OSError:
        return False


def test_metrics_are_served_on_loopback_only_and_only_if_configured(measured: tuple[Daemon, int], daemon: Daemon) -> None:
    own, port = measured
    listening = [each for each in psutil.Process(own.process.pid).net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert [(each.laddr.ip, each.laddr.port) for each in listening] == [("127.0.0.1", port)]
    assert not psutil.Process(daemon.process.pid).net_connections("inet")


def test_a_port_in_use_is_named(new_daemon: Callable[..., Daemon]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, lines = new_daemon(f"metrics_port = {port}\n").refused()
    assert (status, len(lines)) == (2, 1), lines
    assert f"127.0.0.1:{port}" in lines[0]
    assert "metrics_port" in lines[0]


def test_the_documented_metrics_are_the_served_ones(measured: tuple[Daemon, int]) -> None:
    _, port = measured
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    served = dict(re.findall(r"^# HELP (offrld_\S+) (.*)$", text, re.M))
    kinds = dict(re.findall(r"^# TYPE (offrld_\S+) (.*)$", text, re.M))
    rows = re.findall(r"^\| `(offrld_\w+)` \| (\w+) \|[^|]*\| (.*) \|$", DOCS.read_text(), re.M)
    assert {name: meaning for name, _, meaning in rows} == served
    assert {name: kind for name, kind, _ in rows} == kinds
    assert all(name in DOCS.read_text() for name in re.findall(r"^# TYPE (process_\S+)", text, re.M))
