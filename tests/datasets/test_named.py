"""Datasets by name: made on demand, out of the local folders, or downloaded; with the environment that belongs to each."""

from __future__ import annotations

import hashlib
import shutil

import gymnasium
import numpy as np
import pytest

from offrl import named
from offrl.errors import DownloadFailed, InvalidInput, Unknown
from offrl_store import to_arrays
from offrld import datasets
from offrld.datasets.d4rl import url_of
from offrld.importers import import_into


def quiet(line):
    """Nobody listens."""


@pytest.mark.parametrize(("name", "env_id"), [("cartpole-random", "CartPole-v1"), ("pendulum-random", "Pendulum-v1")])
def test_random_data_are_collected_and_a_seed_repeats_them(name, env_id, tmp_path):
    """J17: every step a transition, with the final observations; the second call opens what the first one made."""
    options = {"steps": 450, "seed": 3}
    store, env = datasets.get(name, options=options, message=quiet)
    assert store.step_count == store.transition_count == 450 and env.spec.id == store.metadata["env_id"] == env_id
    assert store.metadata["source"] == {"format": "collected", "name": name, "seed": 3, "steps": 450, "behaviour": "random"}
    again = import_into(datasets.open_named(name, options=options), tmp_path / "again")
    other = import_into(datasets.open_named(name, options=options | {"seed": 4}), tmp_path / "other")
    for key, array in to_arrays(store).items():
        np.testing.assert_array_equal(array, to_arrays(again)[key])
    assert not np.array_equal(to_arrays(store)["actions"], to_arrays(other)["actions"])
    assert datasets.get(name, options=options, message=quiet)[0].path == store.path
    env.close()


def test_the_data_are_what_the_environment_gives(tmp_path):
    """The first episode, played again with its actions: the same observations, rewards and end."""
    store = import_into(datasets.open_named("cartpole-random", options={"steps": 200, "seed": 5}), tmp_path / "store")
    env, episode = gymnasium.make("CartPole-v1"), store.episodes[0]
    seen = [env.reset(seed=5)[0]]
    for action in episode.action:
        observation, reward, terminated, _, _ = env.step(int(action))
        seen.append(observation)
        assert reward == 1.0
    np.testing.assert_array_equal(np.array(seen), episode.observation)
    assert terminated and episode.terminated


@pytest.mark.parametrize(("name", "steps"), [("cartpole-replay", 260), ("pendulum-replay", 430)])
def test_replay_data_are_those_of_an_agent_that_learns(name, steps, tmp_path):
    """J17: DQN and SAC of ours, one update per step; the same seed gives the same bits."""
    stores = [
        import_into(datasets.open_named(name, options={"steps": steps, "seed": seed}), tmp_path / f"store-{number}")
        for number, seed in enumerate((1, 1))
    ]
    first, second = (to_arrays(store) for store in stores)
    assert stores[0].step_count == steps and "while it learns" in stores[0].metadata["source"]["behaviour"]
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])


@pytest.mark.slow
def test_the_agent_of_cartpole_replay_gets_better(tmp_path):
    """The last fifth of its episodes against the first, over 8,000 steps."""
    store = import_into(datasets.open_named("cartpole-replay", options={"steps": 8000}), tmp_path / "store")
    returns = np.asarray(store.returns)
    fifth = len(returns) // 5
    assert returns[-fifth:].mean() > 3 * returns[:fifth].mean()


def test_d4rl_names_resolve_to_files_of_the_local_folder(shared_data, tmp_path):
    """J20, J22: under the published name of the file, or as NAME.hdf5; the environment comes with the name."""
    folder = tmp_path / "d4rl"
    folder.mkdir()
    shutil.copy(shared_data / "hopper-medium-replay.hdf5", folder / "hopper_medium_replay-v2.hdf5")
    store, env = datasets.get("hopper-medium-replay-v2", message=quiet)
    assert len(store) == 851 and env.observation_space.shape == store.schema.observation.shape == (11,)
    env.close()
    shutil.copy(shared_data / "pendulum-random.hdf5", folder / "bullet-hopper-medium-v0.hdf5")  # J21
    store, env = datasets.get("bullet-hopper-medium-v0", message=quiet)
    assert store.step_count == 20_000
    with pytest.raises(DownloadFailed, match=r"hopper_medium-v2\.hdf5"):
        datasets.get("hopper-medium-v2", message=quiet)


def test_a_d4rl_file_is_downloaded_and_resumed(shared_data, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRL_DOWNLOADS", "1")
    monkeypatch.setenv("OFFRL_D4RL_SOURCE", server.url)
    (server.root / "gym_mujoco_v2").mkdir()
    shutil.copy(shared_data / "hopper-medium-replay.hdf5", server.root / "gym_mujoco_v2" / "hopper_medium-v2.hdf5")
    server.cuts = [2_000_000]
    store, env = datasets.get("hopper-medium-v2", message=quiet)
    env.close()
    assert len(store) == 851 and (tmp_path / "d4rl" / "hopper_medium-v2.hdf5").is_file()
    assert [path for path, _ in server.asked] == ["/gym_mujoco_v2/hopper_medium-v2.hdf5"] * 2 and server.asked[1][1]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("halfcheetah-medium-replay-v0", "gym_mujoco/halfcheetah_mixed.hdf5"),
        ("walker2d-medium-replay-v0", "gym_mujoco/walker_mixed.hdf5"),
        ("ant-full-replay-v2", "gym_mujoco_v2/ant_full_replay-v2.hdf5"),
        ("hopper-medium-expert-v2", "gym_mujoco_v2/hopper_medium_expert-v2.hdf5"),
        ("antmaze-umaze-v2", "ant_maze_v2/Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"),
        ("antmaze-large-diverse-v0", "ant_maze_new/Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse.hdf5"),
        ("antmaze-medium-play-v2", "ant_maze_v2/Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5"),
        ("maze2d-large-v1", "maze2d/maze2d-large-sparse-v1.hdf5"),
        ("maze2d-umaze-dense-v1", "maze2d/maze2d-umaze-dense-v1.hdf5"),
        ("pen-human-v0", "hand_dapg/pen-v0_demos_clipped.hdf5"),
        ("door-cloned-v1", "hand_dapg_v1/door-cloned-v1.hdf5"),
        ("kitchen-mixed-v0", "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5"),
        ("bullet-halfcheetah-medium-replay-v0", "bullet/bullet-halfcheetah_medium_replay.hdf5"),
        ("bullet-maze2d-umaze-v0", "bullet/bullet-maze2d-umaze-sparse.hdf5"),
        ("hopper-bullet-mixed-v0", "hopper-bullet-mixed-v0.hdf5?dl=1"),
    ],
)
def test_files_are_looked_for_where_they_are_published(name, end):
    assert url_of(name).endswith(f"/{end}")


def test_every_d4rl_name_has_an_address_of_its_own():
    addresses = [url_of(name) for name in named.D4RL]
    assert len(set(addresses)) == len(addresses) > 100


def test_minari_ids_resolve_below_its_root(shared_data, monkeypatch):
    """J22: by $MINARI_DATASETS_PATH, or in a folder that mirrors the remote."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "minari"))
    store, env = datasets.get("cartpole/replay-v0", message=quiet)
    assert len(store) == 104 and env.spec.id == "CartPole-v1"
    env.close()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_data / "none"))
    monkeypatch.setenv("MINARI_REMOTE", str(shared_data / "minari"))
    assert datasets.open_named("cartpole/replay-v0").count == 104
    with pytest.raises(InvalidInput, match="cartpole/other-v0"):
        datasets.open_named("cartpole/other-v0")


@pytest.mark.parametrize("remote", ["hf", "gcp", "http"])
def test_minari_s_are_downloaded_whole_from_each_kind_of_remote(remote, shared_data, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRL_DOWNLOADS", "1")
    source = shared_data / "minari" / "cartpole" / "replay-v0"
    files = ["data/metadata.json", "data/main_data.hdf5"]
    name = "cartpole/replay-v0"
    if remote == "hf":
        monkeypatch.setenv("MINARI_REMOTE", "hf://somebody")
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        home = server.root / "datasets/somebody/cartpole/resolve/main/replay-v0"
        server.documents["/api/datasets/somebody/cartpole/tree/main/replay-v0"] = [
            {"type": "directory", "path": "replay-v0/data"},
            *(
                {"type": "file", "path": f"replay-v0/{file}", "lfs": {"oid": hashlib.sha256((source / file).read_bytes()).hexdigest()}}
                for file in files
            ),
        ]
    elif remote == "gcp":
        monkeypatch.setenv("MINARI_REMOTE", "gcp://somebody")
        monkeypatch.setattr("offrld.datasets.minari.GCS", f"{server.url}/")
        home = server.root / "somebody" / name
        server.documents["/storage/v1/b/somebody/o"] = {"items": [{"name": f"{name}/{file}"} for file in files]}
    else:
        monkeypatch.setenv("MINARI_REMOTE", f"{server.url}/mirror")
        home = server.root / "mirror" / name
    shutil.copytree(source, home)
    server.cuts = [None, 100_000] if remote == "http" else [500]
    assert datasets.open_named(name).count == 104
    folder = tmp_path / "minari" / name
    assert (folder / files[1]).read_bytes() == (source / files[1]).read_bytes()
    assert [each.name for each in folder.parent.iterdir()] == ["replay-v0"] and any(span for _, span in server.asked)
    (home / files[1]).unlink()
    asked = len(server.asked)
    assert datasets.open_named(name).count == 104 and len(server.asked) == asked  # from here on it is read where it is


def test_a_listing_that_leads_out_of_the_folder_is_refused(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRL_DOWNLOADS", "1")
    monkeypatch.setenv("MINARI_REMOTE", "gcp://somebody")
    monkeypatch.setattr("offrld.datasets.minari.GCS", f"{server.url}/")
    server.documents["/storage/v1/b/somebody/o"] = {"items": [{"name": "a/b-v0/../../../evil"}]}
    with pytest.raises(InvalidInput, match="evil"):
        datasets.open_named("a/b-v0")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("name", "near"),
    [("cartpole-reply", "cartpole-replay"), ("hoper-medium-v2", "hopper-medium-v2"), ("brekout-mixed-v0", "breakout-mixed-v0")],
)
def test_an_unknown_name_is_told_with_the_nearest(name, near):
    with pytest.raises(Unknown, match=name) as caught:
        datasets.get(name)
    assert near in caught.value.hint


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("cartpole-random", {"steps": 0}, InvalidInput),
        ("cartpole-random", {"seed": -1}, InvalidInput),
        ("cartpole-random", {"step": 5}, Unknown),
        ("hopper-medium-v2", {"seed": 1}, Unknown),
    ],
)
def test_wrong_options_are_named(name, options, error):
    with pytest.raises(error, match=next(iter(options))):
        datasets.open_named(name, options=options)


@pytest.mark.parametrize("text", ["data/hopper.hdf5", "./cartpole-random", "/abs/name", "~/x", "a b", "", "..", "x.npz", "a//b"])
def test_what_looks_like_a_path_is_no_name(text):
    assert not named.may_be_name(text)
