"""One client in several threads and processes: forked, pickled, closed. Nothing hangs, and the first process does not notice."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback

import numpy as np
import pytest

import offrl
from offrl.errors import NoDaemon

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ARRAYS = {"observations": np.zeros((20, 2)), "actions": np.zeros((20, 1)), "rewards": np.zeros(20), "terminals": np.arange(20) % 10 == 9}


def in_fork(call) -> str:
    """What a call gives in a process that is forked for it and then ends as every program does; an error's text."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = str(call())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException:
            said = traceback.format_exc()
        os.write(theirs, said.encode())
        os._exit(0)
    os.close(theirs)
    timer = threading.Timer(60, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        return os.read(ours, 10_000).decode()
    finally:
        os.waitpid(child, 0)
        timer.cancel()
        os.close(ours)


def test_a_forked_process_connects_anew(client):
    version = client.ping().version
    assert in_fork(lambda: client.ping().version) == version
    assert in_fork(lambda: in_fork(lambda: client.ping().version)) == version
    assert client.ping().version == version
    assert in_fork(client.close) == "None"
    assert client.ping().version == version


def test_jobs_and_datasets_work_in_a_forked_process(client):
    client.datasets.add("forked", ARRAYS)
    [job] = [job for job in client.jobs("import") if job.last.dataset == "forked"]
    assert in_fork(lambda: job.wait().state) == "succeeded"
    assert in_fork(lambda: len(list(job.follow()))) == str(len(list(job.follow())))
    assert in_fork(lambda: client.datasets.add("forked-2", ARRAYS).episodes) == "2"
    assert "forked-2" in repr(client.datasets)
    for name in ("forked", "forked-2"):
        client.datasets.rm(name)


def test_a_lock_that_another_thread_holds_while_the_process_forks_keeps_nobody_waiting(client):
    with client.connection._lock:
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with other.connection._lock:
                held.set()
                go_on.wait(60)

        other = client.again()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        try:
            assert in_fork(lambda: other.ping().version) == client.ping().version
        finally:
            go_on.set()
            thread.join()
            other.close()


def ping(client: offrl.Client) -> str:
    return client.ping().version


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_takes_clients_and_jobs(client, method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(ping, [client] * 4) == [client.ping().version] * 4


def test_pickled_clients_jobs_and_datasets_find_the_daemon_again(client):
    client.datasets.add("pickled", ARRAYS)
    job = client.jobs("import")[-1]
    copied, mine, datasets = pickle.loads(pickle.dumps((client, job, client.datasets)))
    assert copied.ping().version == client.ping().version
    assert (mine.id, mine.info().state) == (job.id, "succeeded")
    assert datasets.show("pickled").episodes == 2
    copied.close()
    client.datasets.rm("pickled")
    gone = pickle.dumps(offrl.Client(client.url)).replace(client.url.encode(), b"ipc:///" + b"n" * (len(client.url) - 7))
    with pytest.raises(NoDaemon):
        pickle.loads(gone)


def test_a_closed_client_says_so(daemon):
    client = offrl.Client(daemon.url)
    job = client.jobs("all")
    client.close()
    client.close()
    for call in (client.ping, client.datasets.ls, lambda: client.jobs(), lambda: client.submit("bc", dataset="x")):
        with pytest.raises(NoDaemon, match="this client is closed"):
            call()
    assert "closed" in repr(client.datasets) and repr(job)


def test_threads_share_a_client(client):
    answers, errors = [], []

    def ask() -> None:
        try:
            for _ in range(50):
                answers.append(client.ping().version)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(answers) == 400


def test_a_program_whose_forked_process_ends_by_itself_ends(daemon):
    """The interpreter's own clean-up of what was inherited must not wait for threads that are not there."""
    program = """if True:
        import os, sys, offrl
        client = offrl.Client(sys.argv[1])
        client.ping()
        if os.fork():
            os.wait()
        else:
            client.ping()
        print(client.ping().version)
        """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program, daemon.url], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, len(done.stdout.split())) == (0, "", 2)


def test_a_job_prints_what_it_is_and_events_know_seeds_as_numbers(client):
    client.datasets.add("printed", ARRAYS)
    job = client.submit("bc", dataset="printed", steps=20, seeds=[3])
    events = [event for event in job.follow() if event.metrics]
    assert events and all(values[3] == values["3"] for event in events for values in event.metrics.values())
    assert all(list(values) == [3] and values["3"] == values[3] for values in job.metrics().values())
    info = job.info()
    assert repr(job) == f"Job({job.id!r}, bc printed succeeded, 20 of 20)" and repr(client.jobs()[-1]) == repr(job)
    assert f"job={job.id!r}" in repr(info) and "state='succeeded'" in repr(info) and "spec=" not in repr(info) and "None" not in repr(info)
    job.rm()
    client.datasets.rm("printed")
