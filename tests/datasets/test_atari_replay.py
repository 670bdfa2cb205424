"""The DQN replay data by name, out of a folder in exactly that layout, made of real play: cache, mirror, download, joined epochs, a
share."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest

from offrl import named
from offrl.environments import games
from offrl.errors import DownloadFailed, InvalidInput, Unknown
from offrl_store import FrameStacks, concat, copy, to_arrays
from offrld import datasets
from offrld.importers import export_dataset, import_into, open_source
from offrld.importers.atari import ELEMENTS, epochs_in
from offrld.importers.atari_export import write_replay


def logs(bucket):
    return bucket / "Breakout" / "1" / "replay_logs"


def array(path):
    with gzip.open(path) as file:
        return np.lib.format.read_array(file)


def test_the_writer_makes_the_published_layout(bucket, played):
    """Names, dtypes and shapes of the bucket; the epochs follow each other, and the frames are those that the environment gave."""
    assert sorted(each.name for each in logs(bucket).iterdir()) == sorted(
        f"$store$_{element}_ckpt.{epoch}.gz" for element in ELEMENTS for epoch in (1, 2, 3)
    )
    forms = {
        "observation": (np.uint8, (200, 84, 84)),
        "action": (np.int32, (200,)),
        "reward": (np.float32, (200,)),
        "terminal": (np.uint8, (200,)),
    }
    parts = {}
    for element, (dtype, shape) in forms.items():
        arrays = [array(logs(bucket) / f"$store$_{element}_ckpt.{epoch}.gz") for epoch in (1, 2, 3)]
        assert all((each.dtype, each.shape) == (dtype, shape) for each in arrays)
        parts[element] = np.concatenate(arrays)
    flat = to_arrays(played)
    np.testing.assert_array_equal(parts["observation"], flat["observations"][:, 0])
    for element in ("action", "reward", "terminal"):
        np.testing.assert_array_equal(parts[element], flat[f"{element}s"])
    assert parts["terminal"].any() and not parts["terminal"][-1]


def test_a_name_gives_its_epoch_and_its_environment(bucket, played, monkeypatch):
    """K01, K05, K07, J18: breakout-mixed-v0 is epoch 1 of run 1; the environment has the observations and actions of the data."""
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(bucket))
    store, env = datasets.get("breakout-mixed-v0", message=lambda line: None)
    flat, all_of_it = to_arrays(store), to_arrays(played)
    assert flat["observations"].shape == (200, 1, 84, 84) and flat["observations"].dtype == np.uint8
    for key in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_array_equal(flat[key], all_of_it[key][:200])
    assert env.observation_space.shape == store.schema.observation.shape and env.action_space.n == store.schema.action.n == 4
    assert store.metadata["source"] == {"format": "atari", "file": "replay_logs", "game": "Breakout", "index": 1, "epoch": 1}
    assert env.reset(seed=0)[0].shape == (1, 84, 84)
    env.close()


def test_stacked_as_d4rl_atari_gives_them(bucket, monkeypatch):
    """K06, K08: a list of (4, 84, 84) views beside an environment with stack=4."""
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(bucket))
    store, env = datasets.get("breakout-epoch-2-v0", message=lambda line: None, stack=4)
    stacks = FrameStacks(store)
    assert len(stacks) == 200 and stacks[0].shape == env.observation_space.shape == (4, 84, 84)
    assert np.shares_memory(stacks[5], store.column("observation"))
    env.close()


@pytest.mark.parametrize(
    ("name", "index", "epoch"),
    [
        ("pong-mixed-v0", 1, 1),
        ("pong-medium-v3", 4, 10),
        ("pong-expert-v4", 5, 50),
        ("ms-pacman-epoch-7-v2", 3, 7),
        ("pong-epoch-50-v0", 1, 50),
    ],
)
def test_ids_are_those_of_d4rl_atari(name, index, epoch):
    """K01, K02."""
    found = named.find(name)
    assert (found.kind, found.index, found.epoch, found.env_id) == ("atari", index, epoch, f"offrld/{found.game}-v0")


def test_every_game_and_epoch_has_its_ids():
    for game in games.GAMES:
        for level in ("mixed", "medium", "expert", "epoch-1", "epoch-50"):
            assert named.find(f"{game}-{level}-v0").game == game


@pytest.mark.parametrize("name", ["pong-epoch-0-v0", "pong-epoch-51-v0", "pong-mixed-v5", "Pong-mixed-v0", "pongg-mixed-v0", "pong-mixed"])
def test_what_is_no_id_is_told_with_the_nearest(name):
    with pytest.raises(Unknown, match=name) as caught:
        named.find(name)
    assert "pong-mixed-v" in caught.value.hint or "pong-expert" in caught.value.hint or "pong-medium" in caught.value.hint


def test_files_are_downloaded_into_the_cache_and_a_cut_connection_is_resumed(bucket, server, tmp_path, monkeypatch):
    """K03, K04: by $D4RL_DATASET_DIR as GAME/INDEX/EPOCH/ELEMENT.gz; the second time nothing is asked for."""
    monkeypatch.setenv("OFFRL_DOWNLOADS", "1")
    shutil.copytree(bucket, server.root, dirs_exist_ok=True)
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", server.url)
    server.cuts = [5_000]
    lines = []
    store = import_into(datasets.open_named("breakout-mixed-v0", message=lines.append), tmp_path / "store")
    cache = tmp_path / "d4rl" / "Breakout" / "1" / "1"
    assert sorted(each.name for each in cache.iterdir()) == sorted(f"{element}.gz" for element in ELEMENTS)
    for element in ELEMENTS:
        assert (cache / f"{element}.gz").read_bytes() == (logs(bucket) / f"$store$_{element}_ckpt.1.gz").read_bytes()
    assert server.asked[0][0] == "/Breakout/1/replay_logs/$store$_observation_ckpt.1.gz"
    assert server.asked[1][1] == "bytes=5000-" and len(server.asked) == 5
    assert sum("downloading" in line for line in lines) == 4
    assert store.step_count == 200 and store.metadata["source"]["file"] == "1"
    import_into(datasets.open_named("breakout-mixed-v0"), tmp_path / "again")
    assert len(server.asked) == 5


def test_an_interrupted_download_makes_no_dataset_and_the_next_one_fetches_the_rest(bucket, server, tmp_path, monkeypatch):
    monkeypatch.setenv("OFFRL_DOWNLOADS", "1")
    shutil.copytree(bucket, server.root, dirs_exist_ok=True)
    (server.root / "Breakout/1/replay_logs/$store$_terminal_ckpt.1.gz").unlink()
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", server.url)
    with pytest.raises(DownloadFailed, match="404"):
        datasets.get("breakout-mixed-v0", message=lambda line: None)
    cache = tmp_path / "d4rl" / "Breakout" / "1" / "1"
    assert not (cache / "terminal.gz").exists() and list((tmp_path / "stores").iterdir()) == []
    shutil.copytree(bucket, server.root, dirs_exist_ok=True)
    before = len(server.asked)
    datasets.get("breakout-mixed-v0", message=lambda line: None)
    assert len(server.asked) == before + 1  # the three that had come are there


def test_several_epochs_are_joined_in_order(bucket, played, tmp_path, monkeypatch):
    """K14: by option or as a folder; a file's border begins an episode, and every episode knows its epoch."""
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(bucket))
    lines = []
    store = import_into(open_source(bucket / "Breakout" / "1"), tmp_path / "store", message=lines.append)
    np.testing.assert_array_equal(to_arrays(store)["observations"], to_arrays(played)["observations"])
    assert store.metadata["source"]["epochs"] == [1, 2, 3] and store.metadata["env_id"] == "offrld/breakout-v0"
    assert any("3 epochs joined: 1, 2, 3" in line for line in lines)
    starts = np.cumsum(store.episode_table["steps"]) - store.episode_table["steps"]
    assert {200, 400} <= set(starts.tolist())
    assert [store.episode_metadata(i)["epoch"] for i in range(len(store))] == (1 + starts // 200).tolist()
    stack = FrameStacks(store)[200]
    assert not stack[:3].any() and stack[3].any()
    other = import_into(datasets.open_named("breakout-mixed-v0", options={"epochs": [3, 1]}), tmp_path / "other")
    np.testing.assert_array_equal(
        to_arrays(other)["actions"], np.concatenate([to_arrays(played)["actions"][at : at + 200] for at in (400, 0)])
    )


def test_a_share_of_every_epoch(played, tmp_path, monkeypatch):
    """J19: int(steps * fraction) steps of each epoch, whole episodes drawn by the seed and the last one cut, in the order of the file."""
    write_replay(played, tmp_path / "all", "breakout", index=1, epochs=50)  # twelve steps each
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(tmp_path / "all"))
    store, env = datasets.get_atari_transitions("breakout", fraction=0.5, message=lambda line: None)
    env.close()
    epochs = [store.episode_metadata(i)["epoch"] for i in range(len(store))]
    steps = store.episode_table["steps"]
    assert [int(sum(steps[np.array(epochs) == epoch])) for epoch in range(1, 51)] == [6] * 50
    assert store.metadata["source"]["fraction"] == 0.5
    frames = {frame.tobytes(): row for row, frame in enumerate(to_arrays(played)["observations"])}
    assert all(episode.observation[0].tobytes() in frames for episode in store.episodes)
    write_replay(played, tmp_path / "one", "breakout", index=1, epochs=1)
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(tmp_path / "one"))
    draws = []
    for seed in (0, 0, 1, 2, 3):
        part = import_into(
            datasets.open_named("breakout-mixed-v0", options={"fraction": 0.4, "seed": seed}), tmp_path / f"part-{len(draws)}"
        )
        draws.append(to_arrays(part))
        assert part.step_count == 240
        whole = [e for e in part.episodes if e.terminated]
        assert len(whole) < len(part) and all(not e.final_missing for e in part.episodes if not e.terminated and e.steps < 100)
    np.testing.assert_array_equal(draws[0]["observations"], draws[1]["observations"])
    assert any(not np.array_equal(draws[0]["observations"], other["observations"]) for other in draws[2:])


def test_a_mirror_may_have_either_layout_and_says_what_it_lacks(played, bucket, tmp_path, monkeypatch):
    write_replay(played, tmp_path / "renamed", "breakout", index=2, first_epoch=10, bucket=False)
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(tmp_path / "renamed"))
    assert datasets.open_named("breakout-medium-v1").count == len(played)
    with pytest.raises(InvalidInput, match="epoch 50 of Breakout, run 1"):
        datasets.open_named("breakout-expert-v0")
    monkeypatch.delenv("OFFRL_ATARI_SOURCE")
    with pytest.raises(DownloadFailed, match="epoch 1 of Breakout, run 1"):  # and nothing is fetched where downloads are off
        datasets.open_named("breakout-mixed-v0")


def test_a_damaged_or_incomplete_epoch_is_named(bucket, tmp_path):
    shutil.copytree(bucket, tmp_path / "copy")
    folder = logs(tmp_path / "copy")
    file = folder / "$store$_reward_ckpt.2.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="reward"):
        import_into(folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    file.unlink()
    with pytest.raises(InvalidInput, match=r"reward_ckpt\.2\.gz"):
        open_source(folder)
    assert len(epochs_in(folder)) == 3


def test_epochs_of_another_form_are_not_joined(bucket, tmp_path):
    shutil.copytree(bucket, tmp_path / "copy")
    file = logs(tmp_path / "copy") / "$store$_observation_ckpt.2.gz"
    frames = array(file)
    with gzip.open(file, "wb", compresslevel=1) as out:
        np.lib.format.write_array(out, np.ascontiguousarray(frames[:, ::2, ::2]))
    with pytest.raises(InvalidInput, match=r"\(1, 84, 84\) and \(1, 42, 42\) in one folder"):
        open_source(logs(tmp_path / "copy"))


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"fraction": 2}, {"seed": -1, "fraction": 0.5}, {"epochs": [0]}, {"epochs": []}])
def test_bad_options_are_named(bucket, monkeypatch, options):
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(bucket))
    with pytest.raises(InvalidInput, match=next(iter(options))):
        datasets.open_named("breakout-mixed-v0", options=options)


def test_the_writer_refuses_what_the_files_cannot_say(played, tmp_path, discrete_store):
    with pytest.raises(InvalidInput, match="grey frames"):
        write_replay(discrete_store, tmp_path / "out", "breakout")
    joined = import_into(open_source(played.path), tmp_path / "joined")
    import_into(open_source(played.path), joined.path, append=True)
    joined.refresh()
    with pytest.raises(InvalidInput, match=f"episode {len(played) - 1} was cut"):
        write_replay(joined, tmp_path / "out", "breakout")
    assert list((tmp_path / "out").glob("**/*.gz")) == []
    write_replay(joined, tmp_path / "out", "breakout", cuts_are_terminals=True)
    terminal = array(tmp_path / "out/Breakout/1/replay_logs/$store$_terminal_ckpt.1.gz")
    assert terminal[599] == 1 and terminal[1199] == 1


def test_an_export_is_a_mirror_and_comes_back_whole(played, tmp_path, monkeypatch):
    """Completed episodes and the last one; the folder is read as it is, and by its names."""
    store = concat(tmp_path / "two", [played, played])  # one cut in the middle, one at the end
    monkeypatch.setattr("offrld.importers.atari_export.EPOCH_STEPS", 600)
    lines = []
    mirror = export_dataset(store, tmp_path / "mirror", "atari", message=lines.append)
    kept = [number for number, each in enumerate(store.episodes) if each.terminated or number == len(store) - 1]
    assert len(kept) == len(store) - 1
    expected = to_arrays(copy(store, tmp_path / "kept", np.array(kept)))
    count = len(expected["actions"])
    assert lines == [
        f"the last epoch holds {count - 600} steps: d4rl-atari itself takes epochs of 600 only",
        "1 cut episodes are left out: the format marks the end of completed ones only",
        f"the final observations of {len(kept)} episodes are left out: the format has no place for them",
    ]
    again = import_into(mirror, tmp_path / "again")
    ours = to_arrays(again)
    for key in ("observations", "actions", "rewards", "terminals"):
        np.testing.assert_array_equal(ours[key], expected[key])
    assert again.metadata["env_id"] == "offrld/breakout-v0" and again.metadata["source"]["epochs"] == [1, 2]
    monkeypatch.setenv("OFFRL_ATARI_SOURCE", str(mirror))
    assert import_into(datasets.open_named("breakout-mixed-v0"), tmp_path / "first").step_count == 600
    with pytest.raises(InvalidInput, match="grey frames"):
        export_dataset(
            import_into({"observations": [[0.0]], "actions": [0], "rewards": [0.0], "terminals": [1]}, tmp_path / "flat"),
            tmp_path / "no",
            "atari",
        )


def test_an_export_of_an_imported_epoch_is_that_epoch(bucket, tmp_path):
    """Files of the same names and arrays."""
    folder = tmp_path / "copy" / "Breakout" / "1" / "replay_logs"
    folder.mkdir(parents=True)
    for element in ELEMENTS:
        shutil.copy(logs(bucket) / f"$store$_{element}_ckpt.2.gz", folder)
    mirror = export_dataset(import_into(folder, tmp_path / "store"), tmp_path / "mirror", "atari")
    for element in ELEMENTS:
        name = f"$store$_{element}_ckpt.2.gz"
        np.testing.assert_array_equal(array(logs(mirror) / name), array(folder / name))
