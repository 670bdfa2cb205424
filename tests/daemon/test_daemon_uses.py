"""Jobs that inherit a checkpoint: what is refused at submission, what they wait for, what cannot be removed meanwhile."""

from __future__ import annotations

import pytest

from offrl import wire
from offrl.errors import Conflict, InvalidInput, Unknown

SLOW = {"behaviour": "slow"}


def taker(daemon, dataset, config, **fields):
    return daemon.train(dataset, algorithm="taker", config=config, **fields)


def test_a_setting_that_names_a_job_is_checked_when_it_is_submitted(daemon):
    data = daemon.dataset("uses-checked")
    policy = daemon.train(data, seeds=[3, 4])
    daemon.wait(policy)
    model = daemon.train(data, algorithm="model_thing")
    failed = daemon.train(data, "fail")
    assert daemon.wait(failed).state == "failed"
    imported = daemon.import_("uses-checked-2")

    def refused(error, match, **config):
        with pytest.raises(error, match=match):
            taker(daemon, data, config)

    refused(Unknown, "no job 'zzzzzzzz'", policy="zzzzzzzz")
    refused(InvalidInput, "names no job", policy="../escape")
    refused(InvalidInput, "is of kind import", policy=imported)
    refused(InvalidInput, "model takes a job of model_thing, job .* is of anything", model=policy)
    refused(InvalidInput, "policy takes a policy, job .* is of model_thing", policy=model)
    refused(InvalidInput, "has no seed 5", policy=f"{policy}:5")
    refused(Conflict, "has failed and has no checkpoint", policy=failed)
    assert daemon.wait(taker(daemon, data, {"policy": f"{policy}:4", "model": model})).state == "succeeded"


def test_a_job_waits_for_the_job_that_it_inherits_from_which_is_not_removed(daemon):
    data = daemon.dataset("uses-waits")
    source = daemon.train(data, steps=1_000_000, config=SLOW)
    job = taker(daemon, data, {"policy": source})
    assert daemon.job(job).reason == f"waits for {source}"
    daemon.wait(source, "running")
    daemon.control(source, "cancel")
    assert daemon.wait(job).state == "failed"

    ended = daemon.train(data)
    daemon.wait(ended)
    job = taker(daemon, data, {"policy": ended, **SLOW}, steps=1_000_000)
    daemon.wait(job, "running")
    with pytest.raises(Conflict, match=f"job {ended} is needed by {job}"):
        daemon.control(ended, "remove")
    daemon.control(job, "cancel")
    daemon.wait(job)
    daemon.control(ended, "remove")
    with pytest.raises(Unknown):
        daemon.job(ended)


def test_a_succeeded_job_continues_for_more_steps(daemon):
    data = daemon.dataset("uses-more")
    job = daemon.train(data, steps=3)
    daemon.wait(job)

    def resume(steps):
        return daemon.ask(wire.ControlJob(job=job, action="resume", steps=steps))

    with pytest.raises(Conflict, match="has already done 3 updates"):
        resume(3)
    with pytest.raises(Conflict, match="has succeeded"):
        resume(None)
    with pytest.raises(InvalidInput, match="about resuming a job that trains or collects"):
        daemon.ask(wire.ControlJob(job=job, action="retry", steps=9))
    assert resume(7).steps == 7
    info = daemon.wait(job)
    assert (info.state, info.step, info.steps, info.attempt, info.spec["steps"]) == ("succeeded", 7, 7, 2, 7)
    assert "begins at step 3" in (daemon.state / "jobs" / job / "log.txt").read_text()
    states = [event.state for event in daemon.events(job) if event.type == "state"]
    assert states == ["queued", "running", "succeeded", "queued", "running", "succeeded"]


def test_a_job_that_starts_from_another_is_checked_too(daemon):
    data = daemon.dataset("uses-start")
    source = daemon.train(data, seeds=[1, 2])
    with pytest.raises(InvalidInput, match="has no seed 0"):
        daemon.train(data, start=f"{source}:0")
    with pytest.raises(Unknown):
        daemon.train(data, start="nobody")
    job = daemon.train(data, start=f"{source}:2", transfer="policy")
    assert daemon.wait(job).spec["start"] == f"{source}:2"
