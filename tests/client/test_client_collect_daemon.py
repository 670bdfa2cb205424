"""Collecting through a daemon of one's own: while it dies, with the policy of a job that still trains, in worlds that break, on Atari."""

from __future__ import annotations

from pathlib import Path

import pytest
from client_daemon import wait_for

import offrl
from offrl.errors import JobFailed
from offrl_store import EpisodeStore, check

pytestmark = pytest.mark.slow  # make test-collect

BREAKING = Path(__file__).parents[1] / "worker" / "plugins" / "offrld_breaking_env.py"


def installed(folder: Path, name: str, code: str) -> str:
    """A package of environments, as pip would have put it there, and one that cannot be imported; the folder to look in."""
    (folder / f"{name}.py").write_text(code)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[offrl.environments]\nworlds = {name}\nbroken = offrld_no_module\n")
    return str(folder)


SLOW = """
import time
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Slow(PendulumEnv):
    def step(self, action):
        time.sleep(0.0005)
        return super().step(action)

gymnasium.register("SlowPendulum-v0", Slow, max_episode_steps=200)
"""


def test_a_daemon_that_is_killed_while_steps_are_collected_loses_and_doubles_none(own_daemon, tmp_path, monkeypatch):
    """The job goes on where its dataset ends: it has exactly the steps that were asked for, and each of them once."""
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path, "offrld_slow_env", SLOW))
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        job = client.collect("SlowPendulum-v0", into="d", steps=10_000, seed=1).id
    for least in (1_500, 4_000):
        with offrl.Client(daemon.url) as client:
            wait_for(lambda: client.job(job).info().step > least, "more steps")  # noqa: B023  used at once
        daemon.process.kill()
        daemon.process.wait()
        daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        info = client.job(job).wait()
        assert (info.state, info.step, info.attempt) == ("succeeded", 10_000, 3)
        assert client.datasets.show("d").transitions == 10_000
    store = EpisodeStore.open(daemon.state_dir / "datasets" / "d")
    assert store.step_count == 10_000 and check(store.path) == []
    starts = {episode.observation[:2].tobytes() for episode in store.episodes}
    assert len(starts) == len(store) >= 50  # an attempt that began again from the seed would begin the same episodes
    assert {store.episode_metadata(number)["job"] for number in range(len(store))} == {job}


def test_the_policy_of_a_job_that_still_trains_collects(own_daemon):
    """Its newest checkpoint acts, and the job goes on."""
    own_daemon.settings("[slots]\ntrain = 2\n\n[workers]\nspare = 0\n")
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        trains = client.train_online(
            "dqn",
            env="CartPole-v1",
            into="gathered",
            steps=10**7,
            epsilon=0.5,
            update_interval=50,
            eval_env="CartPole-v1",
            eval_episodes=1,
            eval_every=400,
            config={"encoder.units": [16], "batch_size": 32},
        )
        wait_for(lambda: list((daemon.state_dir / "jobs" / trains.id / "checkpoints").glob("*.safetensors")), "a checkpoint")
        acts = client.collect("CartPole-v1", f"job:{trains.id}", into="acted", steps=300)
        acts.wait()
        assert trains.info().state == "running" and trains.info().step >= 400
        assert client.datasets.show("acted").transitions == 300
        store = EpisodeStore.open(daemon.state_dir / "datasets" / "acted")
        assert store.episode_metadata(0)["policy"] == "dqn greedy"
        trains.cancel()
        assert trains.wait(check=False).state == "cancelled"


def test_an_environment_that_breaks_says_where_and_its_dataset_can_be_used(own_daemon, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", installed(tmp_path, "offrld_breaking_env", BREAKING.read_text()))
    daemon = own_daemon.start()
    with offrl.Client(daemon.url) as client:
        assert any("environments broken: offrld_no_module" in problem for problem in client.algo_problems())
        for env, said in (
            ("Breaking-v0", "at step 57, step 17 of its episode: RuntimeError: the arm is stuck"),
            ("Hanging-v0", "has not come back for 0.3 s"),
        ):
            job = client.collect(env, into=env, steps=1000, step_timeout_s=0.3)
            with pytest.raises(JobFailed, match=said):
                job.wait()
            assert job.info().attempt == 1  # it is not a crash, which would be tried again
            shown = client.datasets.show(env)
            assert (shown.episodes, shown.transitions) == (3, 57)
            client.submit("discrete_bc", dataset=env, steps=2, config={"batch_size": 16, "encoder.units": [8]}).wait()


def test_dqn_trains_online_on_an_atari_game(own_daemon, tmp_path):
    """Frames are stored once, and stacked where the policy acts and learns; its file plays the game."""
    pytest.importorskip("ale_py")
    daemon = own_daemon.start()
    config = {"frame_stack": 4, "batch_size": 8, "encoder.filters": [4, 8, 8, 4, 4, 4], "encoder.feature_size": 16}
    with offrl.Client(daemon.url) as client:
        job = client.train_online(
            "dqn", env="offrld/breakout-train-v0", into="played", steps=400, epsilon=0.5, update_interval=20, config=config
        )
        assert job.wait().step == 400
        shown = client.datasets.show("played")
        assert shown.transitions == 400 and shown.fields["observation"]["shape"] == [1, 84, 84]
        policy = offrl.Policy(job.fetch(tmp_path / "policy.onnx"))
    assert policy.metadata["step"] > 0 and policy.discrete
    result = offrl.rollout.evaluate(policy, "offrld/breakout-v0", episodes=1, max_steps=60)
    assert result.lengths == (60,) or result.lengths[0] < 60
