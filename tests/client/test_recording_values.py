"""A recorder keeps exactly what it was given, or refuses it in one line; what goes wrong with one episode costs no other one."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from client_daemon import wait_for

import offrl
from offrl import keys
from offrl.errors import InternalError, InvalidInput, NotAllowed, OffrlError
from offrl.recording import RecordingWarning, Spool
from offrl_store import EpisodeStore, Field, Schema
from offrld.datasets import places


def kept(folder) -> list:
    """The episodes that wait in a spool."""
    with Spool(folder) as spool:
        return [episode for _, path in spool.ready() for episode in EpisodeStore.open(path).episodes]


def schema_of(folder) -> Schema:
    with Spool(folder) as spool:
        return EpisodeStore.open(spool.ready()[0][1]).schema


# ------------------------------------------------------------------------------------------------------------------- the fields
@pytest.mark.parametrize(
    ("first", "later", "dtype"),
    [
        ([0, 0], [0.9, -1.7], "float64"),  # a robot that stands still
        (np.zeros(2, np.int64), np.array([0.9, -1.7]), "float64"),
        (np.zeros(2), np.array([1e9 + 0.1, 0.1]), "float64"),  # not narrowed
        ([0.0, 0.0], [1e300, 0.1], "float64"),
        (np.zeros(2, np.float32), [1, 2], "float32"),
        (np.zeros(2, np.float32), np.array([0.5, 2.0]), "float32"),  # float64 that float32 holds
        (np.zeros(2, np.float16), np.array([0.5, 2.0]), "float16"),
        (np.zeros((2, 3), np.uint8), [[255, 0, 1], [2, 3, 4]], "uint8"),  # pixels
        (np.zeros(2, np.int8), np.array([-128, 127]), "int8"),
        (np.zeros(2, np.int32), np.array([5.0, -6.0]), "int32"),
        (np.zeros(2, np.uint64), np.array([2**64 - 1, 0], np.uint64), "uint64"),
        ([False, True], np.array([1, 0]), "bool"),
        (0, 0.5, "float64"),
        (torch.zeros(2), torch.full((2,), 0.25, dtype=torch.bfloat16), "float32"),
        (np.zeros(2, ">f4"), np.full(2, 0.25, ">f8"), "float32"),
        (np.zeros((2, 2), np.float32).T, np.arange(4, dtype=np.float32).reshape(2, 2)[:, ::-1], "float32"),
    ],
)
def test_every_later_value_is_kept_exactly(tmp_path, first, later, dtype):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.begin(first)
        recorder.step([0.0], 0, first)
        recorder.step([0.7], 0.1, later, terminated=True)
    [episode] = kept(tmp_path / "spool")
    due = later.double().numpy() if isinstance(later, torch.Tensor) else np.asarray(later)
    assert episode.observation.dtype == dtype
    assert np.array_equal(episode.observation[2].astype(object), due.astype(object))
    assert (episode.action[1, 0], episode.reward[1]) == (0.7, 0.1)


@pytest.mark.parametrize(
    ("first", "later", "said"),
    [
        (np.zeros(2, np.uint8), [0, 300], r"observation\[1\] is 300, which uint8 does not hold"),
        (np.zeros(2, np.uint8), [-1, 0], r"observation\[0\] is -1, which uint8"),
        (np.zeros(2, np.int8), np.array([0, 128]), r"observation\[1\] is 128, which int8"),
        (np.zeros(2, np.int32), [0.0, 0.9], r"observation\[1\] is 0.9, which int32"),
        (np.zeros(2, np.float32), np.array([0.1, 0]), r"observation\[0\] is 0.1, which float32"),
        (np.zeros(2, np.float32), [1e300, 0], r"observation\[0\] is 1e\+300, which float32"),
        (np.zeros(2, np.float16), np.array([0.0, 70000.0]), r"observation\[1\] is 70000.0, which float16"),
        (np.zeros(2), np.array([2**53 + 1, 0]), r"observation\[0\] is 9007199254740993, which float64"),
        (np.zeros(2), [2**53 + 1, 0.5], "whole numbers that no float holds"),
        (np.zeros(2, bool), [0, 2], r"observation\[1\] is 2, which bool"),
        (np.zeros(2), ["0.5", "1"], "observation holds text"),
        (np.zeros(2), [None, 1.0], "observation holds Python objects: None"),
        (np.zeros(2), np.array([1j, 0]), "complex"),
        (np.zeros(2), np.ma.array([1.0, 2.0], mask=[True, False]), "masked"),
        (np.zeros(2), [[1], [2, 3]], "rows differ in shape"),
        (np.zeros(2), np.zeros((2, 1)), r"shape \(2, 1\); expected \(2,\)"),
        (0.0, [0.0], r"shape \(1,\); expected \(\)"),
        (np.zeros(2), [np.nan, 0], r"observation\[0\] is nan, which is not finite"),
        (np.zeros(2), [-np.inf, 0], r"observation\[0\] is -inf, which is not finite"),
        ({"a": 0.0, "b": np.zeros(1, np.uint8)}, {"a": 0.5, "b": [256]}, r"observation.b\[0\] is 256"),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0}, "expected the fields a, b"),
        ({"a": 0.0}, {"a": 0.0, "c": 0.0}, "observation is a, c; expected the fields a"),
        ({"a": {"b": 0.0}}, {"a": {"b": 0.0}, "a.b": 0.0}, "two fields are called 'a.b'"),
    ],
)
def test_what_a_field_does_not_hold_is_refused_in_one_line_and_the_episode_ends_before_it(tmp_path, first, later, said):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.begin(first)
        recorder.step([0.0], 0.0, first)
        with pytest.raises(InvalidInput, match=said) as caught:
            recorder.step([0.0], 0.0, later, terminated=True)
        assert str(caught.value).startswith("episode 1, step 1: ") and "\n" not in str(caught.value)
        recorder.begin(first)
        recorder.step([0.0], 0.0, first, terminated=True)
    assert [(episode.steps, episode.terminated) for episode in kept(tmp_path / "spool")] == [(1, False), (1, True)]


def test_the_action_the_reward_and_the_extras_are_kept_as_exactly(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.begin([0.0])
        recorder.step([0, 0], 0, [0], extra={"torque": 0, "count": np.int16(1)})
        recorder.step([0.7, -0.7], 0.3, [0.9], extra={"torque": np.nan, "count": 2})
        good = {"torque": 0, "count": 0}
        for action, reward, extra, said in [
            ([0.5, 0.5], "1", good, "reward holds text"),
            ([0.5, 0.5], [1.0], good, "reward has shape"),
            ([0.5, 0.5], 2**53 + 1, good, "reward is 9007199254740993"),
            ([0.5], 1, good, "action has shape"),
            ([0.5, None], 1, good, "action holds Python objects"),
            ([0.5, 0.5], 1, None, "extra is nothing; expected"),
            ([0.5, 0.5], 1, {**good, "count": 2**15}, "extra.count is 32768, which int16"),
            ([0.5, 0.5], 1, {**good, "new": 1}, "extra is torque, count, new"),
        ]:
            with pytest.raises(InvalidInput, match=said):
                recorder.step(action, reward, [0.0], extra=extra)
            recorder.begin([0.0])
    [episode] = kept(tmp_path / "spool")
    assert episode.action.tolist() == [[0, 0], [0.7, -0.7]] and episode.reward.tolist() == [0, 0.3]
    np.testing.assert_array_equal(episode.extra["torque"], [0, np.nan])
    assert episode.extra["count"].dtype == np.int16 and episode.extra["count"].tolist() == [1, 2]


def test_the_first_observation_is_copied_and_has_a_say_in_the_fields(tmp_path):
    buffer = np.zeros(2, np.float32)
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.begin(buffer)
        buffer[:] = 1  # as a driver that reuses its memory does
        recorder.step([0.0], 0.0, buffer)
        buffer[:] = 2
        recorder.step([0.0], 0.0, buffer, terminated=True)
    assert kept(tmp_path / "spool")[0].observation.tolist() == [[0, 0], [1, 1], [2, 2]]
    with offrl.Recorder(None, "arm", spool=tmp_path / "wide") as recorder:
        recorder.begin([0.1])
        recorder.step([0.0], 0.0, np.ones(1, np.float32), terminated=True)
    assert kept(tmp_path / "wide")[0].observation.tolist() == [[0.1], [1.0]]


def test_a_first_step_that_is_refused_tells_no_fields(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        for observation, following, action, said in [
            ([0.0], [0.0, 0.0], [0.0], "observation has shape"),
            ({"a": 0.0}, {"b": 0.0}, [0.0], "the first one was the fields a"),
            ([0.0], {"b": 0.0}, [0.0], "the first one was one array"),
            (np.zeros(3), np.zeros(3), [np.nan], "action"),
            ([0.0], [0.0], 1, "number of choices"),
            ([0.0], [0.0], "left", "text"),
            ({"a b": 0.0}, {"a b": 0.0}, [0.0], "'a b'"),
            ([2**53 + 1], [0.5], [0.0], "9007199254740993"),
        ]:
            recorder.begin(observation)
            with pytest.raises(InvalidInput, match=said):
                recorder.step(action, 0.0, following)
        for bad in ([np.nan], {"a": {"b": [0.0, np.inf]}}, None, "left"):
            with pytest.raises(InvalidInput, match="the first observation"):
                recorder.begin(bad)
        with pytest.raises(InvalidInput, match="no episode"):
            recorder.step([0.0], 0.0, [0.0])
        recorder.begin([0.5, 0.5])
        recorder.step([0.1], 0.0, [1, 1], terminated=True)
    assert [episode.observation.tolist() for episode in kept(tmp_path / "spool")] == [[[0.5, 0.5], [1, 1]]]


def test_bounds_and_choices_are_declared_without_a_schema(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "a", action_low=-1, action_high=[1, 2]) as recorder:
        recorder.begin([0.0])
        recorder.step([1, 2], 0.0, [0.0])
        with pytest.raises(InvalidInput, match=r"action\[1\] is 2.5, outside its bounds"):
            recorder.step([1, 2.5], 0.0, [0.0])
    assert schema_of(tmp_path / "a").action == Field("float64", (2,), low=[-1, -1], high=[1, 2])
    assert schema_of(tmp_path / "a").metadata["bounds"] == "declared"
    with offrl.Recorder(None, "arm", spool=tmp_path / "b", action_size=3) as recorder:
        for action in (0, np.int64(2), np.uint8(1), True, np.array(2.0), torch.tensor(1)):
            recorder.begin([0.0])
            recorder.step(action, 0.0, [0.0], terminated=True)
        for action, said in ((3, "action is 3, outside"), (-1, "action is -1"), (0.5, "action is 0.5, which int64"), ([1], "shape")):
            recorder.begin([0.0])
            with pytest.raises(InvalidInput, match=said):
                recorder.step(action, 0.0, [0.0])
    assert [episode.action.tolist() for episode in kept(tmp_path / "b")] == [[0], [2], [1], [1], [2], [1]]
    assert schema_of(tmp_path / "b").action.n == 3
    for given, said in [
        ({"action_size": 0}, "action_size is 0"),
        ({"action_size": 2, "action_low": 0}, "action_size excludes"),
        ({"action_low": "a"}, "text"),
        ({"action_size": 2, "schema": Schema(Field("float32"), Field("float32"))}, "both"),
    ]:
        with pytest.raises(InvalidInput, match=said):
            offrl.Recorder(None, "arm", spool=tmp_path / "c", **given)
    with pytest.raises(InvalidInput, match="client is a dict"):
        offrl.Recorder({}, "arm", spool=tmp_path / "c")


def test_a_declared_float32_takes_python_floats_rounded_and_no_float64_array_that_it_does_not_hold(tmp_path):
    schema = Schema(Field("float32", (1,)), Field("float32", (1,)), Field("float32"))
    with offrl.Recorder(None, "arm", schema=schema, spool=tmp_path / "spool") as recorder:
        recorder.begin([0.1])
        recorder.step([0.1], np.float64(0.1), [0.1])
        with pytest.raises(InvalidInput, match=r"is 0\.1, which float32 does not hold"):
            recorder.step([0.1], 0.1, np.array([0.1]))
    [episode] = kept(tmp_path / "spool")
    assert episode.observation[0] == episode.action[0] == episode.reward[0] == np.float32(0.1)


@pytest.mark.parametrize("flag", [True, np.True_, 1, np.array([True]), torch.tensor(True), 1.0])
def test_flags_of_every_type_and_nothing_else(tmp_path, flag):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        for bad in (0.5, np.array([True, False]), "yes", None, np.nan):
            recorder.begin([0.0])
            recorder.step([0.0], 0.0, [0.0])
            with pytest.raises(InvalidInput, match="terminated"):
                recorder.step([0.0], 0.0, [1.0], terminated=bad)
        recorder.begin([0.0])
        recorder.step([0.0], 0.0, [0.0], terminated=flag)
    assert [episode.terminated for episode in kept(tmp_path / "spool")] == [False] * 5 + [True]


class Odd(gymnasium.Env):
    """Gives what the test has put into it."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, gives) -> None:
        self.gives, self.closed = list(gives), False

    def reset(self, *, seed=None, options=None):
        return self.gives.pop(0), {}

    def step(self, action):
        return self.gives.pop(0), 1.0, False, False, {}

    def close(self):
        self.closed = True


def test_a_wrapped_environment_that_gives_something_odd_goes_on_with_its_next_episode(tmp_path):
    good = np.zeros(2, np.float32)
    inner = Odd([good, good, np.array([0.1, 0]), np.full(2, np.nan, np.float32), good, good, np.zeros(3), good, good])
    with offrl.Recorder(None, "odd", spool=tmp_path / "spool") as recorder:
        env = offrl.RecordEpisodes(inner, recorder)
        env.reset()
        env.step([0.5])
        with pytest.raises(InvalidInput, match=r"episode 1, step 1: .*float32"):
            env.step([0.5])
        with pytest.raises(InvalidInput, match="episode 2, the first observation"):
            env.reset()
        env.reset()
        env.step([0.5])
        with pytest.raises(InvalidInput, match="shape"):
            env.step([0.5])
        env.reset()
        env.step([0.5])
        env.close()
    assert inner.closed
    assert [episode.steps for episode in kept(tmp_path / "spool")] == [1, 1, 1]
    with pytest.raises(InvalidInput, match=r"not a gymnasium\.Env"):
        offrl.RecordEpisodes(object(), recorder)


# --------------------------------------------------------------------------------------------------------------- what is lost
def play(recorder, number: int, steps: int = 2, **end) -> None:
    recorder.begin([float(number)])
    for _ in range(steps):
        recorder.step([0.0], 0.0, [float(number)])
    recorder.end(**end)


def numbers(folder) -> list[float]:
    return [episode.observation[0, 0].item() for episode in kept(folder)]


@pytest.mark.parametrize("method", ["begin", "step", "end", "commit", "sync"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ZeroDivisionError("by chance"), OffrlError("some reason")])
def test_an_episode_that_cannot_be_written_costs_no_other_one(tmp_path, monkeypatch, method, error):
    """Of whatever kind the failure is, and wherever it comes: it is told, counted, and what comes later is kept."""
    recorder = offrl.Recorder(None, "arm", spool=tmp_path / "spool", sync_s=0.01)
    play(recorder, 0)
    wait_for(lambda: recorder.status().episodes == 1, "the first episode")
    with monkeypatch.context() as patched:

        def fail(*arguments, **more):
            raise error

        patched.setattr(f"offrl_store.Writer.{method}", fail)
        recorder.begin([1.0])
        recorder.step([0.0], 0.0, [1.0])
        if method in ("end", "commit"):
            recorder.end()
        wait_for(lambda: recorder.status().problem, "the word of it")
    if method in ("end", "commit"):
        with pytest.warns(RecordingWarning) as warned:
            play(recorder, 2)
        told = str(warned[0].message)
    else:
        with pytest.raises(OffrlError) as caught:
            recorder.step([0.0], 0.0, [1.0])
        told = str(caught.value)
        play(recorder, 2)
    assert told.startswith("episode 2 is lost: ") and str(error.args[-1]) in told
    play(recorder, 3)
    recorder.close()
    assert {0.0, 2.0, 3.0} <= set(numbers(tmp_path / "spool"))
    assert recorder.status().dropped == 1


def test_what_was_lost_last_is_told_by_close(tmp_path, monkeypatch):
    recorder = offrl.Recorder(None, "arm", spool=tmp_path / "spool")
    play(recorder, 0)
    wait_for(lambda: recorder.status().episodes == 1, "the first episode")
    monkeypatch.setattr("offrl_store.Writer.end", lambda *arguments, **more: 1 / 0)
    play(recorder, 1)
    with pytest.raises(InternalError, match=r"episode 2 is lost: .*ZeroDivisionError"):
        recorder.close()
    assert recorder.close() is False  # once
    monkeypatch.undo()
    assert numbers(tmp_path / "spool") == [0.0]


@pytest.mark.filterwarnings("ignore::offrl.recording.RecordingWarning")
def test_a_spool_that_somebody_removes_is_made_again(tmp_path):
    recorder = offrl.Recorder(None, "arm", spool=tmp_path / "spool", send_every_s=0.01)
    for number in range(3):
        play(recorder, number)
        wait_for(lambda number=number: recorder.status().episodes + recorder.status().dropped > number, "the episode")
        if number == 0:
            wait_for(lambda: recorder.status().segments_waiting, "the segment")
            shutil.rmtree(tmp_path / "spool")
    recorder.close()
    assert numbers(tmp_path / "spool") == [1.0, 2.0]
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        play(recorder, 3)
    assert numbers(tmp_path / "spool") == [1.0, 2.0, 3.0]


def test_metadata_that_cannot_be_kept_is_told_at_once_and_costs_nothing_else(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        deep: dict = {}
        for _ in range(5000):
            deep = {"a": deep}
        for number, metadata in enumerate(({"a": object()}, {"a": float("nan")}, {"episode": 7}, 5, deep)):
            recorder.begin([float(number)])
            recorder.step([0.0], 0.0, [0.0])
            with pytest.raises(InvalidInput, match=f"episode {number + 1}: .*; the episode is kept without it"):
                recorder.end(terminated=True, metadata=metadata)
        play(recorder, 5, metadata=OrderedDict(task="good"))
    assert numbers(tmp_path / "spool") == [0, 1, 2, 3, 4, 5]
    assert [episode.terminated for episode in kept(tmp_path / "spool")] == [True] * 5 + [False]


@pytest.mark.parametrize("extra", [[1, 2], (1,), "ab", 5, {1}])
def test_extras_that_are_not_a_mapping_end_the_episode_in_one_line(tmp_path, extra):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.begin([0.0])
        with pytest.raises(InvalidInput, match=f"episode 1, step 0: extra is a {type(extra).__name__}"):
            recorder.step([0.0], 0.0, [0.0], extra=extra)
        with pytest.raises(InvalidInput, match="no episode is open"):
            recorder.step([0.0], 0.0, [0.0])


def test_a_spool_that_cannot_be_made_and_a_schema_that_is_none_are_one_line(tmp_path):
    for spool in ("", "a\0b", "/dev/null", "/proc/spool", tmp_path / ("n" * 300)):
        with pytest.raises(InvalidInput) as caught:
            offrl.Recorder(None, "arm", spool=spool)
        assert "\n" not in str(caught.value)
    for schema in (5, "CartPole-v1"):
        with pytest.raises(InvalidInput, match="schema is a"):
            offrl.Recorder(None, "arm", spool=tmp_path / "spool", schema=schema)


def test_a_user_without_a_home_names_a_spool_and_one_who_is_not_there_is_a_name(monkeypatch, tmp_path):
    def no_home(_: type) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(no_home))
    monkeypatch.delenv("OFFRL_SPOOL", raising=False)
    with pytest.raises(InvalidInput, match="no home for a spool"):
        offrl.Recorder(None, "arm")
    monkeypatch.setenv("D4RL_DATASET_DIR", "~nobody-of-this-name/d4rl")
    assert places.d4rl_folder() == Path("~nobody-of-this-name/d4rl")
    with pytest.raises(NotAllowed, match="does not exist"):
        keys.find("tcp://127.0.0.1:1", "~nobody-of-this-name/offrl.key")


def test_a_copy_beside_the_segments_of_a_spool_is_left_alone(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        play(recorder, 0)
    (tmp_path / "spool" / "ready-00000001.bak").mkdir()
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        assert recorder.status().segments_waiting == 1
    assert (tmp_path / "spool" / "ready-00000001.bak").is_dir()


def test_beginning_twice_and_ending_without_a_step_forget_nothing_else(tmp_path):
    with offrl.Recorder(None, "arm", spool=tmp_path / "spool") as recorder:
        recorder.end()
        recorder.begin([9.0])
        recorder.begin([9.0])
        play(recorder, 0)
        recorder.begin([9.0])
        recorder.end()
        recorder.begin([1.0])
        recorder.step([0.0], 0.0, [1.0])
        play(recorder, 2)
    assert numbers(tmp_path / "spool") == [0, 1, 2] and recorder.status().dropped == 0


# ------------------------------------------------------------------------------------------------- the end of the program, and fork
def test_a_program_that_ends_without_closing_has_everything_in_its_spool(tmp_path):
    program = """if True:
        import sys, offrl
        recorder = offrl.Recorder(sys.argv[2] or None, "arm", spool=sys.argv[1], sync_s=1000)
        for number in range(3):
            recorder.begin([float(number)])
            for _ in range(2):
                recorder.step([0.0], 0.0, [float(number)])
        """
    for url, said in (("", ""), ("ipc:///nowhere/offrld.sock", "")):
        done = subprocess.run([sys.executable, "-c", program, tmp_path / f"s{bool(url)}", url], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, said)
        assert numbers(tmp_path / f"s{bool(url)}") == [0, 1, 2]


def test_a_short_program_that_closes_waits_for_the_daemon(daemon, tmp_path):
    """By default: what it gave has arrived, although nothing was due to be sent yet."""
    with offrl.Recorder(daemon.url, "short", spool=tmp_path / "spool") as recorder:
        play(recorder, 0)
        assert recorder.close()
    assert len(EpisodeStore.open(daemon.state_dir / "datasets" / "short")) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_at_once_and_the_recording_one_goes_on(tmp_path):
    recorder = offrl.Recorder(None, "arm", spool=tmp_path / "spool")
    recorder.begin([0.0])
    recorder.step([0.0], 0.0, [0.0])
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        said = []
        for call in (lambda: recorder.begin([1.0]), lambda: recorder.step([0.0], 0.0, [0.0]), recorder.end):
            try:
                call()
            except InvalidInput as error:
                said.append(str(error))
        recorder.close()
        os.write(theirs, repr(said).encode())
        os.close(theirs)
        while True:
            signal.pause()
    os.close(theirs)
    try:
        said = os.read(ours, 10_000).decode()
        assert said.count("belongs to process") == 3
        recorder.step([0.0], 0.0, [0.0], terminated=True)
        recorder.close()
        assert [episode.steps for episode in kept(tmp_path / "spool")] == [2]  # while the forked process has the lock open, too
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with pytest.raises(InvalidInput, match="cannot be sent to another process"):
        pickle.dumps(recorder)
