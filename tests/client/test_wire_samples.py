"""The bytes of protocol 2, and what each request says about itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offrl import wire
from offrl.errors import Conflict
from offrl.job import TrainSpec

SAMPLES = json.loads((Path(__file__).parent / "samples" / "wire-2.json").read_text())


@pytest.mark.parametrize("sample", SAMPLES["requests"])
def test_a_request_has_the_bytes_of_earlier_versions(sample: str) -> None:
    assert wire.encode_request(wire.decode_request(bytes.fromhex(sample))).hex() == sample


def test_the_samples_hold_every_request() -> None:
    assert {type(wire.decode_request(bytes.fromhex(sample))) for sample in SAMPLES["requests"]} == set(wire.REQUESTS)


@pytest.mark.parametrize("name", SAMPLES["replies"])
def test_a_reply_has_the_bytes_of_earlier_versions(name: str) -> None:
    body = bytes.fromhex(SAMPLES["replies"][name])
    assert wire.encode_reply(wire.decode_reply(body, getattr(wire, name))) == body


def test_an_error_has_the_bytes_of_earlier_versions() -> None:
    assert wire.encode_error(Conflict("dataset 'd' exists", hint="choose another name")).hex() == SAMPLES["error"]


@pytest.mark.parametrize("kind", wire.REQUESTS, ids=lambda kind: kind.__name__)
def test_a_request_names_its_reply_and_its_role(kind: type[wire.Request]) -> None:
    assert issubclass(kind.reply, wire.Reply)
    assert kind.role in ("reader", "submitter", "operator")
    assert set(kind.audit_names) | set(kind.later) <= set(kind.model_fields)


def test_only_requests_that_change_something_belong_in_the_audit_log() -> None:
    assert wire.ControlJob(job="j", action="cancel").changes()
    assert not wire.GetJob(job="j").changes()
    assert wire.Prune().changes()
    assert not wire.Prune(dry_run=True).changes()
    look = wire.OpenArtifact(job="j")
    assert not look.changes(wire.Artifact(job="j", ready=True))
    assert look.changes(wire.Artifact(job="e", ready=False))


def test_a_submission_may_be_repeated_only_with_a_key() -> None:
    spec = TrainSpec(algorithm="bc", dataset="d")
    assert not wire.Submit(spec=spec).repeatable
    assert wire.Submit(spec=spec, key="k").repeatable
    assert wire.GetJob(job="j").repeatable
    assert not wire.ControlJob(job="j", action="cancel").repeatable
