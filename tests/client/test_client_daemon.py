"""The whole client against a real daemon and real workers: datasets, jobs, policies, in Python and on the command line."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile

import numpy as np
import pytest

import offrl
from offrl.errors import Conflict, InvalidInput, JobFailed, Unknown
from offrl_store import Episode, EpisodeStore, Field, Schema

STATUS_KEYS = {"job", "state", "reason", "algorithm", "dataset", "steps", "step", "updates_per_second", "metrics"}
DATASET_KEYS = {"name", "episodes", "transitions", "bytes", "fields", "snapshot", "returns"}
WAIT_S = 100


def arrays(episodes: int = 4, steps: int = 25, seed: int = 0) -> dict[str, np.ndarray]:
    """A small dataset of CartPole's form."""
    random = np.random.default_rng(seed)
    rows = episodes * steps
    timeouts = np.zeros(rows, bool)
    timeouts[steps - 1 :: steps] = True
    return {
        "observations": random.normal(size=(rows, 4)).astype(np.float32),
        "actions": random.integers(0, 2, rows).astype(np.int64),
        "rewards": np.ones(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": timeouts,
    }


@pytest.fixture(scope="module")
def dataset(client) -> str:
    client.datasets.add("small", arrays())
    return "small"


@pytest.fixture(scope="module")
def trained(client, dataset) -> offrl.Job:
    """A job of two seeds, evaluated twice."""
    job = client.submit(
        "discrete_bc", dataset=dataset, steps=60, seeds=[0, 3], eval_env="CartPole-v1", eval_episodes=2, eval_every=30, runner="eager"
    )
    job.wait(WAIT_S)
    return job


@pytest.fixture
def long_job(client, dataset):
    """A job that runs until it is stopped."""
    job = client.submit("discrete_bc", dataset=dataset, steps=10**9, runner="eager")
    yield job
    if job.state not in ("succeeded", "failed", "cancelled"):
        job.cancel()
        job.wait(WAIT_S, check=False)


def until(job: offrl.Job, state: str) -> None:
    """Follow the job up to a state."""
    if job.state == state:
        return
    for event in job.follow():
        if event.state == state and job.state == state:
            return
    raise AssertionError(f"{job} never was {state}: {job.info()}")


# ------------------------------------------------------------------------------------------------------------------- datasets
def test_ping(daemon, client, offrl_cli):
    assert client.ping().state_dir == str(daemon.state_dir)
    assert {"version", "protocol", "state_dir", "uptime_s"} <= set(offrl_cli("ping", "--json").json)
    assert str(daemon.state_dir) in offrl_cli("ping").out


def test_algos(client, offrl_cli):
    found = offrl_cli("algos", "--json").json
    assert {"rebrac", "discrete_cql"} <= {each["name"] for each in found}
    for each in found:
        assert {"name", "summary", "actions", "config"} <= set(each)
        assert each["actions"] in ("continuous", "discrete", "both")
        assert all({"type", "default", "help"} <= set(field) for field in each["config"].values())
    assert client.algos("iql")["name"] == "iql"
    assert "discrete_cql" in offrl_cli("algos").out
    assert "conservative_weight" in offrl_cli("algos", "discrete_cql").out or "alpha" in offrl_cli("algos", "discrete_cql").out
    shown = offrl_cli("algos", "rebrac").out
    assert shown.count("batch norm after each") == 1, "components of one kind are shown once"
    assert "actor_encoder, critic_encoder (--set actor_encoder.NAME=VALUE)" in shown
    assert "false; critic_encoder: true" in shown
    for name in client.algos("rebrac")["config"]:
        assert re.search(rf"^{re.escape(name.rpartition('.')[2])} ", shown, re.MULTILINE), f"{name} is not shown"
    ran = offrl_cli("algos", "iqll")
    assert (ran.status, ran.err) == (2, "error: no algorithm 'iqll'; did you mean 'iql'?\n")


def test_a_file_of_real_data_becomes_a_dataset_and_goes_again(shared_data, offrl_cli):
    ran = offrl_cli("datasets", "add", "cartpole", shared_data / "cartpole-random.hdf5", "--json")
    assert ran.status == 0
    info = ran.json
    assert set(info) >= DATASET_KEYS
    assert set(info["returns"]) == {"mean", "std", "min", "max"}
    assert info["transitions"] > 1000
    assert "cartpole" in offrl_cli("datasets", "ls").out
    assert [each for each in offrl_cli("datasets", "ls", "--json").json if each["name"] == "cartpole"] == [info]
    again = offrl_cli("datasets", "add", "cartpole", shared_data / "cartpole-random.hdf5")
    assert again.status == 2
    assert "'cartpole' exists" in again.err
    assert offrl_cli("datasets", "rm", "cartpole", "--json").json == {"name": "cartpole", "removed": True}
    assert offrl_cli("datasets", "show", "cartpole").status == 2


def test_a_folder_is_uploaded_as_it_is(shared_data, client):
    [folder] = [path.parent.parent for path in (shared_data / "minari").rglob("main_data.hdf5")][:1]
    info = client.datasets.add("minari", folder)
    assert info.episodes > 0
    client.datasets.rm("minari")


def test_episodes_and_stores_are_sources_too(client, tmp_path):
    episodes = [Episode(np.ones((6, 3), np.float32), [0, 1, 2, 1, 0], [1.0] * 5, terminated=True) for _ in range(3)]
    info = client.datasets.add("episodes", iter(episodes))
    assert (info.episodes, info.transitions) == (3, 15)
    assert info.fields["action"]["n"] == 3
    assert client.datasets.append("episodes", episodes[:1]).episodes == 4
    schema = Schema(Field("float32", (3,)), Field("float32", (2,), low=-1, high=1))
    store = EpisodeStore.create(tmp_path / "store", schema)
    with store.writer() as writer:
        writer.append(Episode(np.zeros((4, 3), np.float32), np.zeros((3, 2), np.float32), np.zeros(3, np.float32)))
    assert client.datasets.add("from-store", EpisodeStore.open(tmp_path / "store")).transitions == 3
    for name in ("episodes", "from-store"):
        client.datasets.rm(name)


def test_append_adds_all_or_nothing(client, offrl_cli, tmp_path):
    client.datasets.add("grows", arrays())
    np.savez(tmp_path / "more.npz", **arrays(2, seed=1))
    assert offrl_cli("datasets", "append", "grows", tmp_path / "more.npz", "--json").json["episodes"] == 6
    bad = arrays(2, seed=2)
    bad["observations"][-1, 0] = np.nan
    np.savez(tmp_path / "bad.npz", **bad)
    ran = offrl_cli("datasets", "append", "grows", tmp_path / "bad.npz")
    assert ran.status == 2
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert client.datasets.show("grows").episodes == 6
    client.datasets.rm("grows")


@pytest.mark.parametrize("case", ["missing", "text", "empty", "nan", "lengths", "name", "unknown-format"])
def test_bad_data_is_bad_input_and_leaves_nothing(case, client, offrl_cli, tmp_path):
    path, name, more = tmp_path / "data.npz", "bad", []
    data = arrays()
    if case == "nan":
        data["rewards"][3] = np.nan
    if case == "lengths":
        data["actions"] = data["actions"][:-1]
    if case in ("nan", "lengths", "name", "unknown-format"):
        np.savez(path, **data)
    if case == "text":
        path.write_text("hello")
    if case == "empty":
        path.write_bytes(b"")
    if case == "name":
        name = "../bad"
    if case == "unknown-format":
        more = ["--format", "nonsense"]
    ran = offrl_cli("datasets", "add", name, path, *more, "--json")
    assert ran.status == 2, ran
    assert set(ran.json["error"]) == {"code", "message", "hint"}
    assert "Traceback" not in ran.err
    assert "bad" not in [each.name for each in client.datasets.ls()]


def test_a_table_is_added_with_a_map(client, offrl_cli, tmp_path):
    data = arrays(episodes=2, steps=3)
    rows = [[f"run {i // 3}", *data["observations"][i].tolist(), data["actions"][i], 1] for i in range(6)]
    text = "\n".join(",".join(map(str, row)) for row in [["ep", "x_0", "x_1", "x_2", "x_3", "push", "gain"], *rows])
    (tmp_path / "log.csv").write_text(text)
    columns = "observation=x_*,action=push,reward=gain,episode=ep"
    ran = offrl_cli("datasets", "add", "table", tmp_path / "log.csv", "--map", columns, "--json")
    assert ran.status == 0 and (ran.json["episodes"], ran.json["returns"]["mean"]) == (2, 3.0), ran
    (tmp_path / "map.toml").write_text('observation = "x_*"\naction = "push"\nreward = "gain"\nepisode = "ep"\n')
    again = offrl_cli("datasets", "append", "table", tmp_path / "log.csv", "--map", tmp_path / "map.toml", "--json")
    assert again.status == 0 and again.json["episodes"] == 4, again
    wrong = offrl_cli("datasets", "add", "other", tmp_path / "log.csv", "--map", "observation=y_*,action=push,reward=gain,episode=ep")
    assert wrong.status == 2 and "log.csv has no column 'y_*', which is mapped to 'observation'" in wrong.err
    client.datasets.rm("table")


def test_bad_episodes_are_left_out_on_request_and_named(client, offrl_cli, tmp_path):
    data = arrays()
    data["rewards"][3] = np.nan
    np.savez(tmp_path / "some.npz", **data)
    ran = offrl_cli("datasets", "add", "partly", tmp_path / "some.npz", "--skip-bad", "--json")
    assert ran.status == 0 and ran.json["skipped_episodes"] == 1, ran
    assert ran.json["skipped"] == [{"episode": 0, "row": 3, "why": "some.npz: rewards[3] is nan"}]
    assert "left out: episode 0: some.npz: rewards[3] is nan" in ran.err
    more = offrl_cli("datasets", "append", "partly", tmp_path / "some.npz", "--skip-bad")
    assert more.status == 0 and "1 bad episodes" in more.out and "episode 0: some.npz: rewards[3] is nan" in more.out
    assert client.datasets.show("partly").episodes == 2 * ran.json["episodes"]
    wrong = offrl_cli("datasets", "add", "other", tmp_path / "some.npz", "--option", "nonsense=1", "--json")
    assert wrong.status == 2 and "has no option 'nonsense'" in wrong.json["error"]["message"]
    client.datasets.rm("partly")


@pytest.mark.parametrize(
    ("out", "format"),
    [
        ("small.npz", None),
        ("small.hdf5", None),
        ("store", None),
        ("small.h5", "d3rlpy"),
        ("small.h5", "d3rlpy-v1"),
        ("small-v0", "minari"),
        ("small.hdf5", "robomimic"),
        ("folder", "torchrl"),
        ("folder", "lerobot"),
    ],
)
def test_an_exported_dataset_can_be_added_again(out, format, client, dataset, offrl_cli, tmp_path):
    ran = offrl_cli("datasets", "export", dataset, tmp_path / out, "--json", *(["--format", format] if format else []))
    assert ran.status == 0, ran
    assert ran.json["path"] == str(tmp_path / out)
    assert format in (None, ran.json["format"])
    copy = client.datasets.add("copy", tmp_path / out)
    original = client.datasets.show(dataset)
    assert (copy.episodes, copy.transitions) == (original.episodes, original.transitions)
    if format in ("minari", "robomimic", "torchrl"):  # no place for a last step without the observation after it
        assert copy.returns["mean"] == original.returns["mean"] - 1
    else:
        assert copy.returns == original.returns
    client.datasets.rm("copy")
    assert [path.name for path in tmp_path.iterdir()] == [out]
    assert client.jobs("dataset_export") == []


# ----------------------------------------------------------------------------------------------------------------------- jobs
def test_submit_prints_the_job_and_with_wait_its_end(dataset, client, offrl_cli):
    common = ["submit", "discrete_bc", "--dataset", dataset, "--runner", "eager"]
    plain = offrl_cli(*common, "--steps", "1e9")  # it still runs when it is cancelled
    assert plain.status == 0
    [job] = plain.out.splitlines()
    client.job(job).cancel()
    as_json = offrl_cli(*common, "--steps", "20", "--seeds", "0-1", "--set", "batch_size=8", "--wait", "--json")
    assert as_json.status == 0, as_json
    info = as_json.json
    assert set(info) >= STATUS_KEYS
    assert (info["state"], info["step"], info["steps"], info["algorithm"], info["dataset"]) == ("succeeded", 20, 20, "discrete_bc", dataset)
    assert set(info["metrics"]["loss"]) == {"0", "1"}
    assert info["spec"]["config"] == {"batch_size": 8}
    assert info["job"] in as_json.err
    short = offrl_cli(*common, "--steps", "1e9", "--json").json
    assert set(short) == {"job"}
    client.job(short["job"]).cancel()


def test_a_file_given_as_the_dataset_is_imported_once(client, tmp_path, offrl_cli):
    np.savez(tmp_path / "log.npz", **arrays(seed=5))
    first = client.submit("discrete_bc", dataset=tmp_path / "log.npz", steps=10**9, runner="eager")
    second = client.submit("discrete_bc", dataset=str(tmp_path / "log.npz"), steps=10**9, runner="eager")
    name = first.info().dataset
    assert name.startswith("log-")
    assert second.info().dataset == name
    for job in (first, second):
        job.cancel()
        job.wait(WAIT_S, check=False)
    (tmp_path / "bad.npz").write_text("nothing")
    ran = offrl_cli("submit", "discrete_bc", "--dataset", tmp_path / "bad.npz")
    assert ran.status == 2
    assert "bad.npz" in ran.err
    ran = offrl_cli("submit", "discrete_bc", "--dataset", "missing.hdf5")
    assert ran.status == 2
    assert "missing.hdf5" in ran.err
    client.datasets.rm(name)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"algorithm": "discrete_bcc"}, Unknown, "discrete_bc"),
        ({"dataset": "smal"}, Unknown, "small"),
        ({"config": {"learning_rat": 1.0}}, Unknown, "learning_rate"),
        ({"config": {"batch_size": "many"}}, InvalidInput, "batch_size"),
        ({"steps": -5}, InvalidInput, "-5"),
        ({"steps": 1.5}, InvalidInput, "steps"),
        ({"seeds": []}, InvalidInput, "seeds"),
        ({"seed": 1, "seeds": [2]}, InvalidInput, "seed=1"),
        ({"eval_env": "CartPol-v1"}, Unknown, "CartPole-v1"),
        ({"algorithm": "iql"}, InvalidInput, "continuous"),
        ({"preset": "nonsense"}, Unknown, "nonsense"),
        ({"after": "nojob"}, InvalidInput, "nojob"),
        ({"runner": "fast"}, InvalidInput, "fast"),
        ({"eval_every": 3}, InvalidInput, "--eval-env"),
        ({"eval_env": "CartPole-v1", "early_stop": 3}, InvalidInput, "--eval-every"),
        ({"early_stop": 0}, InvalidInput, "early_stop"),
    ],
)
def test_a_submission_that_makes_no_sense_is_refused(change, error, says, client, dataset):
    before = len(client.jobs())
    with pytest.raises(error) as caught:
        client.submit(**{"algorithm": "discrete_bc", "dataset": dataset, "steps": 5, **change})
    assert says in f"{caught.value} {caught.value.hint}"
    assert caught.value.exit_status == 2
    assert len(client.jobs()) == before


def test_the_same_key_is_the_same_job(client, dataset):
    first = client.submit("discrete_bc", dataset=dataset, steps=10**9, key="once", runner="eager")
    assert client.submit("discrete_bc", dataset=dataset, steps=10**9, key="once", runner="eager").id == first.id
    other = client.submit("discrete_bc", dataset=dataset, steps=10**9, runner="eager")
    assert other.id != first.id
    for job in (first, other):
        job.cancel()


def test_status_lists_jobs_and_shows_one(trained, client, offrl_cli):
    [listed] = [each for each in offrl_cli("status", "--json").json if each["job"] == trained.id]
    assert set(listed) >= STATUS_KEYS
    assert trained.id in offrl_cli("status").out
    assert all(each["kind"] == "import" for each in offrl_cli("status", "--kind", "import", "--json").json)
    shown = offrl_cli("status", trained.id)
    assert "return_mean" in shown.out
    assert set(offrl_cli("status", trained.id, "--json", "--watch").json) >= STATUS_KEYS
    assert trained.id in [job.id for job in client.jobs("train")]
    assert offrl_cli("status", "nojob").status == 2


def test_events_are_numbered_without_gaps_and_end_with_the_job(trained):
    events = list(trained.follow())
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert events[-1].state == "succeeded"
    assert max(event.step for event in events) == 60
    assert [event.n for event in trained.follow(cursor=events[-2].n)] == [events[-1].n]


def test_metrics_are_by_seed(trained):
    assert set(trained.metrics()["return_mean"]) == {0, 3}


def test_logs(trained, offrl_cli):
    plain = offrl_cli("logs", trained.id)
    assert plain.status == 0
    assert offrl_cli("logs", trained.id, "--follow").out == plain.out
    assert offrl_cli("logs", trained.id, "--json").json == {"job": trained.id, "log": plain.out}
    assert trained.log() == plain.out


def test_a_job_is_paused_resumed_cancelled_retried_and_removed(long_job, client, offrl_cli):
    until(long_job, "running")
    assert set(offrl_cli("pause", long_job.id, "--json").json) >= STATUS_KEYS
    until(long_job, "paused")
    assert offrl_cli("resume", long_job.id).status == 0
    until(long_job, "running")
    with pytest.raises(TimeoutError):
        long_job.wait(0.2)
    refused = offrl_cli("rm", long_job.id)
    assert refused.status == 2
    assert long_job.id in refused.err
    assert offrl_cli("cancel", long_job.id).status == 0
    with pytest.raises(JobFailed, match="cancelled"):
        long_job.wait(WAIT_S)
    waited = offrl_cli("wait", long_job.id, "--json")
    assert waited.status == 1
    assert waited.json["state"] == "cancelled"
    assert set(waited.json["error"]) == {"code", "message", "hint"}
    assert offrl_cli("resume", long_job.id).status == 2
    assert offrl_cli("retry", long_job.id, "--json").json["state"] in ("queued", "running")
    long_job.cancel()
    long_job.wait(WAIT_S, check=False)
    assert offrl_cli("rm", long_job.id, "--json").json["removed"] is True
    with pytest.raises(Unknown):
        client.job(long_job.id)
    long_job.info = lambda: long_job.last  # for the fixture's end: it is gone


def test_a_dataset_in_use_stays(long_job, client, dataset):
    with pytest.raises(Conflict, match=dataset) as caught:
        client.datasets.rm(dataset)
    assert long_job.id in f"{caught.value} {caught.value.hint}"
    assert client.datasets.show(dataset).name == dataset


# ------------------------------------------------------------------------------------------------------------------- policies
def test_fetch_and_evaluate(trained, offrl_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = offrl_cli("fetch", trained.id, "--json")
    assert ran.status == 0, ran
    assert ran.json["path"] == "policy.onnx"
    import hashlib

    assert ran.json["sha256"] == hashlib.sha256((tmp_path / "policy.onnx").read_bytes()).hexdigest()
    policy = offrl.Policy(tmp_path / "policy.onnx")
    assert policy.metadata["seed"] == 0
    ran = offrl_cli("evaluate", "policy.onnx", "--env", "CartPole-v1", "--episodes", "2", "--json")
    assert set(ran.json) == {"env", "episodes", "return_mean", "return_std", "returns", "latency_us"}
    assert set(ran.json["latency_us"]) == {"median", "p99"}
    assert ran.json["return_mean"] == pytest.approx(trained.metrics()["return_mean"][0])  # the file evaluated is the one fetched
    assert "CartPole-v1" in offrl_cli("evaluate", "policy.onnx", "--episodes", "1").out


def test_fetch_finds_the_seed_the_step_and_the_best(trained, tmp_path):
    assert offrl.Policy(trained.fetch(tmp_path / "s.onnx", seed=3)).metadata["seed"] == 3
    values = {}
    with zipfile.ZipFile(trained.fetch(tmp_path / "m.zip", "metrics")) as archive:
        for row in csv.DictReader(io.StringIO(archive.read("seed-0/return_mean.csv").decode())):
            values[int(row["step"])] = float(row["value"])
    assert set(values) == {30, 60}
    best = offrl.Policy(trained.fetch(tmp_path / "b.onnx", best=True)).metadata["step"]
    assert values[best] == max(values.values())
    assert offrl.Policy(trained.fetch(tmp_path / "t.onnx", step=60)).metadata["step"] == 60
    assert trained.fetch(tmp_path / "c.safetensors", "checkpoint").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:.torch.jit.load:DeprecationWarning")
def test_fetch_brings_the_same_policy_as_torchscript(trained, client, offrl_cli, tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    ran = offrl_cli("fetch", trained.id, "--kind", "torchscript", "--seed", 3, "--step", 30, "--json")
    assert ran.status == 0, ran.err
    assert (ran.json["path"], ran.json["kind"]) == ("policy.pt", "torchscript")
    metadata = {"offrl.json": ""}
    policy = torch.jit.load("policy.pt", _extra_files=metadata)
    metadata = json.loads(metadata["offrl.json"])
    assert (metadata["job"], metadata["seed"], metadata["step"]) == (trained.id, 3, 30)
    same = offrl.Policy(trained.fetch(tmp_path / "s.onnx", seed=3, step=30))
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert policy(torch.from_numpy(rows)).tolist() == same.predict(rows).tolist()

    exports = len(client.jobs(kind="export"))
    assert trained.fetch(kind="torchscript", seed=3, step=30).read_bytes() == (tmp_path / "policy.pt").read_bytes()
    assert len(client.jobs(kind="export")) == exports  # it is made once
    best = torch.jit.load(trained.fetch("best.pt", "torchscript", best=True), _extra_files=(found := {"offrl.json": ""}))
    assert best(torch.from_numpy(rows)).dtype == torch.int64
    assert json.loads(found["offrl.json"])["step"] == offrl.Policy(trained.fetch("best.onnx", best=True)).metadata["step"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "1"], "seed 1"),
        (["--step", "7"], "step 7"),
        (["--best", "--step", "60"], "step"),
        (["--kind", "torchscript", "--step", "7"], "step 7"),
        (["--kind", "nonsense"], "nonsense"),
        (["--out", "/nowhere/policy.onnx"], "/nowhere/policy.onnx"),
    ],
)
def test_what_cannot_be_fetched_is_bad_input(arguments, says, trained, offrl_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = offrl_cli("fetch", trained.id, *arguments)
    assert ran.status == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_submission_in_a_process_of_its_own(daemon, client, dataset, offrl_process):
    ran = offrl_process(
        "submit", "discrete_bc", "--dataset", dataset, "--steps", "1000000", "--runner", "eager", "--json", env={"OFFRL_URL": daemon.url}
    )
    assert ran.returncode == 0, ran
    assert set(json.loads(ran.stdout)) == {"job"}
    assert ran.stderr == ""
    client.job(json.loads(ran.stdout)["job"]).cancel()
