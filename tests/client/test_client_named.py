"""Named datasets through a real daemon: made or found by an import job, and refused before one where the name means nothing."""

from __future__ import annotations

import shutil

import pytest

import offrl
from offrl import job, wire
from offrl.errors import InvalidInput, Unknown


def test_a_named_dataset_is_made_by_the_daemon(offrl_cli):
    result = offrl_cli("datasets", "add", "cart", "cartpole-random", "--option", "steps=300", "--option", "seed=2", "--json")
    assert result.status == 0, result
    assert result.json["transitions"] == 300
    assert result.json["metadata"]["source"]["name"] == "cartpole-random"
    assert result.json["metadata"]["env_id"] == "CartPole-v1"


def test_more_of_it_is_appended(client):
    client.datasets.add("carts", "cartpole-random", options={"steps": 100})
    info = client.datasets.append("carts", "cartpole-random", options={"steps": 150, "seed": 1})
    assert info.transitions == 250


def test_what_is_neither_a_file_nor_a_name_is_refused_at_once(offrl_cli, client):
    result = offrl_cli("datasets", "add", "x", "hoper-medium-v2", "--json")
    assert result.status == 2 and result.json["error"]["code"] == "unknown"
    assert "neither a file nor a dataset" in result.json["error"]["message"] and "hopper-medium-v2" in result.json["error"]["hint"]
    with pytest.raises(Unknown) as refused:
        client.datasets.add("x", "nofile")
    assert refused.value.hint == "pass the path of a file or a folder"  # and not the first of hundreds of names
    with pytest.raises(Unknown, match="nonesuch"):  # the daemon looks for itself, too
        client.request(wire.Submit(spec=job.ImportSpec(dataset="x", named="nonesuch")))
    with pytest.raises(InvalidInput, match="exactly one"):
        client.request(wire.Submit(spec=job.ImportSpec(dataset="x", named="cartpole-random", path="/tmp/x")))
    with pytest.raises(Unknown, match="step"):
        client.datasets.add("x", "cartpole-random", options={"step": 3})
    assert "x" not in [each.name for each in client.datasets.ls()]


def test_the_daemon_s_settings_say_where_files_are(own_daemon, shared_data, tmp_path):
    (tmp_path / "d4rl").mkdir()
    shutil.copy(shared_data / "hopper-medium-replay.hdf5", tmp_path / "d4rl" / "hopper_medium_replay-v2.hdf5")
    own_daemon.settings(f'[named]\nd4rl_dir = "{tmp_path / "d4rl"}"\nminari_dir = "{shared_data / "minari"}"\ndownloads = false\n')
    with offrl.Client(own_daemon.start().url) as client:
        info = client.datasets.add("hopper", "hopper-medium-replay-v2")
        assert info.episodes == 851 and info.metadata["env_id"] == "Hopper-v5"  # the file's own word
        assert client.datasets.add("pole", "cartpole/replay-v0").episodes == 104
        with pytest.raises(offrl.errors.DownloadFailed, match="is not in"):
            client.datasets.add("walker", "walker2d-medium-v2")


@pytest.mark.slow
def test_a_policy_of_atari_data_is_evaluated_in_its_environment(own_daemon, tmp_path):
    """K07 from end to end: the replay data by name, a policy of stacked frames, evaluated by the worker and here to the same return."""
    from offrl.rollout import evaluate, make_env
    from offrl_store import EpisodeStore
    from offrld.collect import RandomBehaviour, collect_episodes, schema_of
    from offrld.importers.atari_export import write_replay

    env = make_env("offrld/space-invaders-v0")
    with EpisodeStore.create(tmp_path / "played", schema_of(env)).writer() as writer:
        for episode in collect_episodes(env, RandomBehaviour(), steps=400, seed=0):
            writer.append(episode)
    write_replay(EpisodeStore.open(tmp_path / "played"), tmp_path / "bucket", "space-invaders")
    own_daemon.settings(f'[named]\nd4rl_dir = "{tmp_path / "cache"}"\natari_source = "{tmp_path / "bucket"}"\n')
    with offrl.Client(own_daemon.start().url) as client:
        assert client.datasets.add("space-invaders", "space-invaders-mixed-v0").metadata["env_id"] == "offrld/space-invaders-v0"
        config = {"frame_stack": 4, "batch_size": 8}
        evaluation = {"eval_env": "offrld/space-invaders-v0", "eval_episodes": 1}
        job = client.submit("discrete_bc", dataset="space-invaders", steps=5, config=config, **evaluation)
        job.wait()
        mean = job.metrics()["return_mean"][0]
        path = job.fetch(tmp_path / "policy.onnx")
        with pytest.raises(Unknown, match="offrld/space-invader-v0"):
            client.submit("discrete_bc", dataset="space-invaders", steps=5, eval_env="offrld/space-invader-v0")
    assert evaluate(str(path), "offrld/space-invaders-v0", episodes=1).returns == (mean,)
