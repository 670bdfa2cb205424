"""Hung workers, spare workers, and the cards and CPU threads that train jobs share, with a real daemon and real processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from daemon_harness import Daemon, alive, until

from offrl.errors import InvalidInput

QUICK = "[grace]\ncancel_s = 0.3\npause_s = 0.3\nstop_s = 0.5\n"


def spares(daemon: Daemon, job: str = "spare-") -> list[int]:
    """Return the spare workers of this state folder: the processes whose environment names no job."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"OFFRLD_WORKER={job}".encode() in environment and f":{daemon.state}\0".encode() in environment:
                found.append(int(entry.name))
    return [pid for pid in found if alive(pid)]


# ------------------------------------------------------------------------------------------------------------------------- hangs
def test_a_worker_that_hangs_is_killed_and_the_reason_says_at_which_step(new_daemon) -> None:
    daemon = new_daemon(QUICK + "hang_s = 0.7\nbusy_s = 60\n").start()
    data = daemon.dataset("data")
    job = daemon.train(data, "stalls")
    info = daemon.wait(job)
    assert (info.state, info.error["code"]) == ("failed", "worker_hung")
    assert info.reason == "the worker hung: no sign of life for 0.7 s, last step 2"
    assert "begins at step 0" in info.error["log"]
    assert not alive(daemon.attempts(job)[0][1])
    # Compiling takes longer than that, and says so: it is not a hang.
    assert daemon.wait(daemon.train(data, "compiling")).state == "succeeded"


def test_a_worker_that_never_starts_gets_the_longer_limit(new_daemon) -> None:
    daemon = new_daemon(QUICK + "hang_s = 0.2\nbusy_s = 1.5\n").start()
    job = daemon.train(daemon.dataset("data"), "slow", steps=10**6)
    pid = until(lambda: daemon.attempts(job))[0][1]
    os.kill(pid, signal.SIGSTOP)  # nothing runs in it any more, and no handler can
    info = daemon.wait(job)
    assert info.error["code"] == "worker_hung"
    assert not alive(pid)


def test_a_job_continues_from_its_checkpoint_after_its_worker_was_killed(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    job = daemon.train(daemon.dataset("data"), "slow", steps=60)
    until(lambda: daemon.job(job).step > 5)
    daemon.control(job, "pause")
    at = daemon.wait(job, "paused").step
    checkpoints = daemon.state / "jobs" / job / "checkpoints"
    (checkpoints / f"{at:012d}.safetensors").write_bytes(b"state")
    daemon.control(job, "resume")
    os.kill(until(lambda: len(daemon.attempts(job)) == 2 and daemon.attempts(job))[1][1], signal.SIGKILL)
    info = daemon.wait(job)
    assert (info.state, info.error["code"]) == ("failed", "worker_killed")
    daemon.control(job, "retry")
    assert daemon.wait(job).state == "succeeded"
    assert (daemon.state / "jobs" / job / "log.txt").read_text().splitlines()[-1] == f"begins at step {at}"


# ------------------------------------------------------------------------------------------------------------------------ spares
def test_a_spare_worker_gets_the_next_job_and_is_replaced(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    data = daemon.dataset("data")
    (spare,) = until(lambda: spares(daemon))
    job = daemon.train(data)
    assert daemon.wait(job).state == "succeeded"
    assert daemon.attempts(job)[0][1] == spare
    assert (daemon.state / "jobs" / job / "log.txt").read_text() == "begins at step 0\n"  # its stderr, although it began elsewhere
    until(lambda: not alive(spare))
    (fresh,) = until(lambda: spares(daemon))
    assert fresh != spare
    assert list((daemon.state / "run" / "workers").iterdir()) == []
    cold = daemon.train(data, threads=2) if (os.cpu_count() or 1) > 1 else None
    if cold is not None:  # the spare's libraries have been loaded for one thread
        daemon.wait(cold)
        assert daemon.attempts(cold)[0][1] != fresh
    assert daemon.stop() == 0
    assert not spares(daemon)


def test_a_spare_worker_ends_with_its_daemon_and_leaves_nothing(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    (spare,) = until(lambda: spares(daemon))
    daemon.kill()
    until(lambda: not alive(spare))
    daemon.start()
    (second,) = until(lambda: spares(daemon))
    assert second != spare


def test_a_worker_that_was_a_spare_is_known_to_the_next_daemon(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    data = daemon.dataset("data")
    until(lambda: spares(daemon))
    job = daemon.train(data, "children")
    until(lambda: daemon.job(job).step == 1)
    pids = [daemon.attempts(job)[0][1], int((daemon.state / "jobs" / job / "child").read_text())]
    assert pids[0] in spares(daemon)  # only the note says that it has this job
    daemon.kill()
    assert all(map(alive, pids))
    daemon.start()
    until(lambda: daemon.job(job).attempt == 2)
    assert not any(map(alive, pids))
    daemon.control(job, "cancel")
    daemon.wait(job)


def test_a_job_does_not_fail_because_its_spare_worker_was_dying(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    data = daemon.dataset("data")
    (spare,) = until(lambda: spares(daemon))
    os.kill(spare, signal.SIGSTOP)  # it takes the job, so to speak, and is killed before it can say a word
    job = daemon.train(data)
    until(lambda: daemon.job(job).state == "running")
    until(lambda: list((daemon.state / "run" / "workers").glob("*")))
    os.kill(spare, signal.SIGKILL)
    info = daemon.wait(job)
    assert (info.state, info.attempt) == ("succeeded", 1)
    assert daemon.attempts(job)[0][1] != spare


def test_the_log_does_not_blame_a_job_for_the_spare_worker_after_it(new_daemon) -> None:
    daemon = new_daemon(QUICK).start()
    (first,) = until(lambda: spares(daemon))
    job = daemon.train(daemon.dataset("data"))
    daemon.wait(job)
    (second,) = until(lambda: (found := spares(daemon)) and first not in found and found)
    os.kill(second, signal.SIGKILL)
    told = until(lambda: [line for line in daemon.output.read_text().splitlines() if "a spare worker ended with status -9" in line])
    assert all(job not in line for line in told)


def test_spare_workers_can_be_switched_off_and_do_not_stay_for_ever(new_daemon) -> None:
    daemon = new_daemon(QUICK + "[workers]\nspare = 0\n").start()
    assert daemon.wait(daemon.train(daemon.dataset("data"))).state == "succeeded"
    assert not spares(daemon)
    daemon.stop()
    daemon = new_daemon(QUICK + "[workers]\nspare = 2\nspare_idle_s = 0.5\n").start()
    first = until(lambda: len(found := spares(daemon)) == 2 and found)
    until(lambda: not any(map(alive, first)))
    assert daemon.wait(daemon.train(daemon.dataset("data"))).state == "succeeded"
    until(lambda: len(spares(daemon)) == 2)  # back with the next job


# ------------------------------------------------------------------------------------------------------------- cards and threads
def test_jobs_run_side_by_side_as_long_as_cpu_threads_are_free(new_daemon) -> None:
    daemon = new_daemon(QUICK + "[slots]\ntrain = 8\n[devices]\nthreads = 4\ncards = []\n").start()
    data = daemon.dataset("data")
    running = [daemon.train(data, "slow", steps=10**6, threads=3)]
    until(lambda: daemon.job(running[0]).step > 0)
    large = daemon.train(data, "slow", steps=10**6, threads=2)
    small = daemon.train(data, "slow", steps=3)  # one thread is free, but it is kept for those who have waited longer
    until(lambda: daemon.job(large).state == "queued")
    assert daemon.job(small).state == "queued"
    daemon.control(large, "cancel")
    assert daemon.wait(small).state == "succeeded"
    assert daemon.job(running[0]).state == "running"
    daemon.control(running[0], "cancel")
    with pytest.raises(InvalidInput, match="threads = 5, but all jobs of this service together have 4"):
        daemon.train(data, threads=5)


def test_jobs_are_placed_on_the_cards_and_each_sees_only_its_own(new_daemon) -> None:
    daemon = new_daemon(QUICK + '[devices]\ncards = ["GPU-a", "GPU-b"]\nmemory_mb = 10000\nslots = 2\nthreads = 16\n').start()
    data = daemon.dataset("data")

    def card(job: str) -> str:
        until(lambda: daemon.job(job).step > 0)
        return (daemon.state / "jobs" / job / "card").read_text()

    first, second = (daemon.train(data, "slow", steps=10**6, gpu_memory_mb=7000) for _ in range(2))
    assert {card(first), card(second)} == {"GPU-a cuda", "GPU-b cuda"}
    third = daemon.train(data, "slow", steps=10**6, gpu_memory_mb=4000)  # a slot is free on both, the memory on neither
    fourth = daemon.train(data, "slow", steps=10**6, device="cpu")  # passes by
    assert card(fourth) == " None"
    assert daemon.job(third).state == "queued"
    daemon.control(second, "cancel")
    freed = card(second)
    assert card(third) == freed
    for job in (first, third, fourth):
        daemon.control(job, "cancel")
    assert daemon.wait(daemon.train(data, device="cuda:1")).state == "succeeded"
    with pytest.raises(InvalidInput, match="cuda:2, but there are 2 GPUs"):
        daemon.train(data, device="cuda:2")
    with pytest.raises(InvalidInput, match="requests 20000 MB of GPU memory, but the largest GPU that it may use has 10000 MB"):
        daemon.train(data, gpu_memory_mb=20_000)


def test_a_job_that_fits_nowhere_any_more_fails_and_says_why(new_daemon) -> None:
    daemon = new_daemon(QUICK + "[slots]\ntrain = 0\n[devices]\ncards = [0, 1]\n").start()
    data = daemon.dataset("data")
    job, after = daemon.train(data, device="cuda:1"), daemon.train(data)
    daemon.stop()
    (daemon.state / "offrld.toml").write_text(QUICK + "[devices]\ncards = [0]\n")  # the other has been taken out
    daemon.start()
    info = daemon.wait(job)
    assert (info.state, info.attempt) == ("failed", 0)
    assert "device cuda:1, but there are 1 GPUs" in info.reason
    assert daemon.wait(after).state == "succeeded"
