"""Recording with the thin client: into the spool first, to the daemon when it is there; nothing is lost, nothing arrives twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from client_daemon import wait_for
from recording_child import observation, record, steps_of

import offrl
from offrl import wire
from offrl.errors import Conflict, InvalidInput, StoreLocked
from offrl.recording import RecordingWarning, Spool, push
from offrl_store import EpisodeStore, Field, Schema

CHILD = Path(__file__).with_name("recording_child.py")


def numbers(store: EpisodeStore) -> list[int]:
    """The numbers of a store's episodes, each of which is what the recording process made of it."""
    found = []
    for episode in store.episodes:
        number = int(episode.observation[0, 0])
        if episode.terminated:
            assert episode.steps == steps_of(number)
            np.testing.assert_array_equal(episode.reward, np.full(episode.steps, number, np.float32))
        np.testing.assert_array_equal(episode.observation, [observation(number, step) for step in range(episode.steps + 1)])
        found.append(number)
    return found


def dataset(daemon, name) -> EpisodeStore:
    return EpisodeStore.open(daemon.state_dir / "datasets" / name)


def jobs_of(client, name) -> list[offrl.Job]:
    """The import jobs of a dataset."""
    return [each for each in client.jobs("import") if each.last.dataset == name]


def left(folder) -> list[EpisodeStore]:
    """The stores that wait in a spool."""
    with Spool(folder) as spool:
        return [EpisodeStore.open(path) for _, path in spool.ready()]


def test_what_a_loop_records_arrives(daemon, client, tmp_path):
    """In whole episodes, in order, with the observation after the last action; the open one ends as truncated."""
    with offrl.Recorder(client, "arm", spool=tmp_path / "spool", send_every_s=0.2) as recorder:
        record(recorder, 0, 6)
        recorder.begin(observation(6, 0))
        recorder.step([-1.0], 2.0, observation(6, 1))
        assert recorder.close(wait_s=90), recorder.status()
        assert recorder.status().episodes == 7 and recorder.status().problem == ""
    store = dataset(daemon, "arm")
    assert numbers(store) == list(range(7)) and store.step_count == store.transition_count
    assert [each.terminated for each in store.episodes] == [True] * 6 + [False]
    assert store.schema.observation == Field("float32", (2,)) and store.metadata["source"]["format"] == "recorded"
    kept = store.episode_metadata(3)
    assert kept["episode"] == 3 and abs(kept["recorded_at"] - time.time()) < 600
    with offrl.Recorder(client.url, "arm", spool=tmp_path / "spool") as recorder:  # the next day: it is appended to
        record(recorder, 7, 1)
        assert recorder.close(wait_s=90)
    assert numbers(dataset(daemon, "arm")) == list(range(8))


def test_an_environment_is_recorded_while_somebody_plays(daemon, client, tmp_path):
    """RecordEpisodes: the fields are those of its spaces; every step of the environment is in the dataset."""
    with offrl.Recorder(client, "played", spool=tmp_path / "spool", send_every_s=0.2) as recorder:
        env = offrl.RecordEpisodes(gymnasium.make("CartPole-v1"), recorder)
        played = []
        for seed in range(3):
            seen, ended = [env.reset(seed=seed)[0]], False
            while not ended:
                following, _, terminated, truncated, _ = env.step(seed % 2)
                seen.append(following)
                ended = terminated or truncated
            played.append(np.array(seen))
        env.reset(seed=9)
        env.step(0)
        env.close()
        assert recorder.close(wait_s=90)
    store = dataset(daemon, "played")
    assert store.schema.action == Field("int64", (), low=0, high=1) and store.metadata["env_id"] == "CartPole-v1"
    for episode, seen in zip(store.episodes[:3], played, strict=True):
        np.testing.assert_array_equal(episode.observation, seen)
        assert episode.terminated
    assert len(store) == 4 and store.episodes[3].steps == 1 and not store.episodes[3].terminated


def test_without_a_daemon_everything_waits_in_the_spool(daemon, tmp_path, offrl_cli):
    """And `offrl spool push` sends it later; once."""
    with offrl.Recorder("ipc:///nowhere/offrld.sock", "later", spool=tmp_path / "spool", send_every_s=0.1) as recorder:
        record(recorder, 0, 5)
        wait_for(lambda: recorder.status().problem, "the word that nobody is there")
        with pytest.warns(RecordingWarning, match=r"unsent episodes remain in the spool .*nowhere.*offrl spool push"):
            assert not recorder.close()
    shown = offrl_cli("spool", "show", tmp_path / "spool", "--json").json
    assert (shown["dataset"], shown["episodes"], shown["steps"]) == ("later", 5, sum(map(steps_of, range(5))))
    assert offrl_cli("spool", "push", tmp_path / "spool", "--json").json["episodes"] == 5
    assert offrl_cli("spool", "push", tmp_path / "spool", "--json").json == {"dataset": "later", "segments": 0, "episodes": None}
    assert numbers(dataset(daemon, "later")) == list(range(5))
    assert offrl_cli("spool", "push", tmp_path / "nothing").status == 2


def test_a_killed_recording_process_loses_no_episode_and_keeps_the_open_one(daemon, client, tmp_path):
    """kill -9 in the middle: every finished episode arrives exactly once and in order, the open one as truncated."""
    spool, first = tmp_path / "spool", 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, str(CHILD), daemon.url, str(spool), "killed", str(first), "6"], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout.readline() == "recorded\n" and child.stdout.readline() == "open\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        first += 7
    push(spool, client)
    store = dataset(daemon, "killed")
    assert numbers(store) == list(range(14))
    cut = [each.steps for each in store.episodes if not each.terminated]
    assert cut == [3, 3] and store.episode_metadata(13)["cut"]
    assert push(spool, client) == ("killed", 0)


def test_a_killed_daemon_loses_no_episode_and_gets_none_twice(own_daemon, tmp_path):
    """kill -9 of the daemon while episodes arrive, twice; its workers and queue come back, and so does the recorder."""
    daemon = own_daemon.start()
    recorder = offrl.Recorder(daemon.url, "steady", spool=tmp_path / "spool", send_every_s=0.1)
    first = 0
    for _ in range(2):
        sent = recorder.status().segments_sent
        record(recorder, first, 5)
        wait_for(lambda sent=sent: recorder.spool.sending or recorder.status().segments_sent > sent, "a segment under way")
        daemon.process.kill()
        daemon.process.wait()
        record(recorder, first + 5, 5)  # nobody is there; the loop goes on
        first += 10
        daemon = own_daemon.start()
    assert recorder.close(wait_s=120), recorder.status()
    assert numbers(dataset(daemon, "steady")) == list(range(first))


def test_a_reply_that_was_lost_gives_the_same_job_again(daemon, client, tmp_path):
    """The process dies after the job was submitted and before it knew: the key brings that job back, and nothing is appended twice."""
    with offrl.Recorder(None, "lost", spool=tmp_path / "spool") as recorder:
        record(recorder, 0, 4)
    with Spool(tmp_path / "spool") as spool:
        [(number, path)] = spool.ready()
    kept = [(each.relative_to(path), each.read_bytes()) for each in path.rglob("*") if each.is_file()]
    notes = (tmp_path / "spool" / "spool.json").read_text()
    assert push(tmp_path / "spool", client) == ("lost", 1)
    after = (tmp_path / "spool" / "spool.json").read_text()
    for name, content in kept:  # as it stood between the submission and its reply
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    [job] = jobs_of(client, "lost")
    attempt = {"segment": number, "try": 0, "upload": client.request(wire.GetJob(job=job.id)).spec["upload"], "append": False, "once": True}
    (tmp_path / "spool" / "spool.json").write_text(json.dumps({**json.loads(notes), "sending": attempt}))
    assert push(tmp_path / "spool", client) == ("lost", 1)
    assert numbers(dataset(daemon, "lost")) == list(range(4)) and (tmp_path / "spool" / "spool.json").read_text() == after
    assert len(jobs_of(client, "lost")) == 1


def test_a_segment_whose_job_was_removed_is_not_appended_again(daemon, client, tmp_path):
    """The daemon has it, the word of that was lost, and its job is gone: neither key nor upload tell any more, the episodes do."""
    folder, name = tmp_path / "spool", "removed"
    for first in (0, 4):  # the segment that makes the dataset, and one that is appended
        with offrl.Recorder(None, name, spool=folder) as recorder:
            record(recorder, first, 3)
            recorder.begin(observation(first + 3, 0))
            recorder.step([0.5], 0.0, observation(first + 3, 1))
        with Spool(folder) as spool:
            [(number, path)] = spool.ready()
            attempt = {"segment": number, "try": 0, "upload": None, "append": bool(first), "once": True}
        shutil.copytree(path, tmp_path / "kept")
        notes = json.loads((folder / "spool.json").read_text())
        assert push(folder, client) == (name, 1)
        [job] = jobs_of(client, name)
        gone = {**attempt, "upload": client.request(wire.GetJob(job=job.id)).spec["upload"]}
        for sending, told in ((gone, InvalidInput), (None, None), (None, Conflict)):  # the last one: under the key of a job that is there
            for each in jobs_of(client, name) if told != Conflict else []:
                each.rm()
            shutil.copytree(tmp_path / "kept", path)
            (folder / "spool.json").write_text(json.dumps({**notes, "sending": sending}))
            if told is not None:
                with pytest.raises(told):  # the next attempt sends it again
                    push(folder, client)
            assert push(folder, client) == (name, 1)
            assert numbers(dataset(daemon, name)) == list(range(first + 4))
        for each in jobs_of(client, name):
            each.rm()
        shutil.rmtree(tmp_path / "kept")
    with offrl.Recorder(client, name, spool=folder) as recorder:  # what comes next is appended
        record(recorder, 8, 2)
        assert recorder.close(wait_s=90)
    assert numbers(dataset(daemon, name)) == list(range(10))


def test_an_episode_that_does_not_fit_the_dataset_is_told_and_kept(daemon, client, tmp_path):
    client.datasets.add(
        "other",
        {
            "observations": np.zeros((4, 3), np.float32),
            "actions": np.zeros((4, 1), np.float32),
            "rewards": np.zeros(4, np.float32),
            "terminals": np.array([0, 0, 0, 1]),
        },
    )
    with offrl.Recorder(client, "other", spool=tmp_path / "spool", send_every_s=0.1) as recorder:
        record(recorder, 0, 2)
        wait_for(lambda: "observation" in recorder.status().problem, "the word that it does not fit")
        with pytest.warns(RecordingWarning, match="remain in the spool.*observation"):
            assert not recorder.close()
    assert left(tmp_path / "spool")[0].step_count == 5


def test_the_spool_s_limit(tmp_path):
    """New episodes are not recorded beyond it, and counted; or the oldest are dropped."""
    size = 200_000

    def play(recorder, episodes):
        for episode in range(episodes):
            recorder.begin(np.full(1000, episode, np.float32))
            for _ in range(30):
                recorder.step([0.0], 0.0, np.full(1000, episode, np.float32))
            recorder.end()
            wait_for(lambda done=episode + 1: recorder.status().episodes + recorder.status().dropped >= done, "the episode")

    with offrl.Recorder(None, "full", spool=tmp_path / "keep", limit_bytes=size, send_every_s=0.001) as recorder:
        with pytest.warns(RecordingWarning, match="is lost: the spool holds"):
            play(recorder, 8)
        status = recorder.status()
        assert 1 <= status.episodes < 8 and status.episodes + status.dropped == 8 and "limit" in status.problem
    kept = [int(each.observation[0, 0]) for store in left(tmp_path / "keep") for each in store.episodes]
    assert kept == list(range(len(kept))) and len(kept) == status.episodes
    with offrl.Recorder(None, "full", spool=tmp_path / "drop", limit_bytes=size, send_every_s=0.001, drop_oldest=True) as recorder:
        play(recorder, 8)
        assert recorder.status().dropped > 0
    kept = [int(each.observation[0, 0]) for store in left(tmp_path / "drop") for each in store.episodes]
    assert kept and kept[-1] == 7 and kept[0] > 0


def test_a_wrong_step_is_told_at_once_and_ends_the_episode_before_it(tmp_path):
    """What follows a step that is missing would not follow on what is recorded."""
    schema = Schema(
        observation={"image": Field("uint8", (3, 4, 4)), "arm": Field("float32", (2,))},
        action=Field("float32", (1,), low=-1.0, high=1.0),
        reward=Field("float32"),
        extra={"torque": Field("float32", (2,))},
    )
    good = {"image": np.zeros((3, 4, 4), np.uint8), "arm": [0.0, 1.0]}
    with offrl.Recorder(None, "wrong", schema=schema, spool=tmp_path / "spool") as recorder:
        with pytest.raises(InvalidInput, match="no episode"):
            recorder.step([0.0], 0.0, good)
        for arguments, named in [
            (([0.5, 0.5], 0.0, good), "action"),
            (([1.5], 0.0, good), "action"),
            (([0.5], float("nan"), good), "reward"),
            (([0.5], 0.0, {"arm": [0, 1]}), "image"),
            (([0.5], 0.0, {**good, "arm": [0, float("inf")]}), "arm"),
            (([0.5], 0.0, [0, 1]), "observation"),
            (([0.5], 0.0, good), "extra"),
        ]:
            recorder.begin(good)
            recorder.step([0.5], 1.0, good, extra={"torque": [1, 2]})
            with pytest.raises(InvalidInput, match=named):
                recorder.step(*arguments, extra=None if named == "extra" else {"torque": [0, 0]})
            with pytest.raises(InvalidInput, match="no episode"):
                recorder.step([0.5], 1.0, good, extra={"torque": [1, 2]})
        with pytest.raises(StoreLocked):
            offrl.Recorder(None, "wrong", spool=tmp_path / "spool")
    [store] = left(tmp_path / "spool")
    assert [(each.steps, each.terminated) for each in store.episodes] == [(1, False)] * 7
    with pytest.raises(InvalidInput, match="'wrong'"):
        Spool(tmp_path / "spool", "another")
    with pytest.raises(InvalidInput, match="choices"), offrl.Recorder(None, "x", spool=tmp_path / "x") as recorder:
        recorder.begin([0.0])
        recorder.step(1, 0.0, [0.0])
    for settings, named in [({"limit_bytes": 0}, "limit_bytes"), ({"sync_s": -1}, "sync_s")]:
        with pytest.raises(InvalidInput, match=named):
            offrl.Recorder(None, "x", spool=tmp_path / "x", **settings)
    with pytest.raises(InvalidInput, match="a/b"):
        offrl.Recorder(None, "a/b", spool=tmp_path / "x")


def test_a_robot_s_process_loads_neither_torch_nor_gymnasium():
    program = "import sys, offrl; offrl.Recorder; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    assert not {"torch", "gymnasium", "onnxruntime", "h5py"} & set(done.stdout.split())
