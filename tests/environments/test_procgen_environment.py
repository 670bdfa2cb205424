"""Procgen's games as gymnasium environments, against procgen itself; skipped where its packages are not installed (docs/procgen.md)."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from offrl import environments
from offrl.environments.games import PROCGEN, PROCGEN_MODES
from offrl.environments.procgen import ProcgenEnv, ProcgenVectorEnv
from offrl.errors import InvalidInput, Unknown
from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.collect import Collector


def available() -> bool:
    try:
        ProcgenEnv("coinrun")
    except gymnasium.error.DependencyNotInstalled:
        return False
    return True


installed = pytest.mark.skipif(not available(), reason="procgen is not installed: pip install --no-deps procgen-mirror gym3")


def test_every_game_mode_and_set_of_levels_has_an_id():
    environments.register()
    ids = [name for name in gymnasium.registry if name.startswith("offrld/procgen-")]
    assert len(ids) == 4 * sum(map(len, PROCGEN_MODES.values())) == 4 * (16 * 2 + 4 + 6 + 8)
    assert gymnasium.spec("offrld/procgen-coinrun-validation-v0").kwargs == {
        "game": "coinrun",
        "distribution_mode": "easy",
        "start_level": 200,
        "num_levels": 50,
    }
    assert gymnasium.spec("offrld/procgen-maze-memory-test-v0").kwargs == {
        "game": "maze",
        "distribution_mode": "memory",
        "start_level": 250,
    }


def test_where_it_is_missing_the_way_to_install_it_is_said():
    # In a process whose import of procgen fails, as on a machine without it.
    program = "import sys; sys.modules['procgen'] = None\nfrom offrl.rollout import make_env\nmake_env('offrld/procgen-coinrun-v0')"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install --no-deps procgen-mirror gym3" in ran.stderr.splitlines()[-1]


@installed
@pytest.mark.parametrize("game", PROCGEN)
def test_gymnasium_is_content_with_every_game(game):
    check_env(make_env(f"offrld/procgen-{game}-train-v0").unwrapped, skip_render_check=True)


@installed
def test_steps_are_those_of_procgen_itself():
    env = ProcgenEnv("coinrun", num_levels=5)
    first, info = env.reset(seed=7)
    own = sys.modules["procgen.env"].ProcgenGym3Env(num=1, env_name="coinrun", num_levels=5, distribution_mode="easy", rand_seed=7)
    _, shown, begun = own.observe()
    np.testing.assert_array_equal(first, np.moveaxis(shown["rgb"][0], -1, 0))
    assert begun[0] and info["level_seed"] == own.get_info()[0]["level_seed"] < 5
    ends = 0
    for action in np.random.default_rng(0).integers(15, size=2500):
        own.act(np.array([action], np.int32))
        reward, shown, begun = own.observe()
        observation, mine, terminated, truncated, info = env.step(int(action))
        assert (mine, terminated, truncated) == (reward[0], bool(begun[0]), False)
        assert info["level_seed"] == own.get_info()[0]["level_seed"]
        if terminated:
            ends += 1
            assert not observation.any()
            observation, _ = env.reset()
        np.testing.assert_array_equal(observation, np.moveaxis(shown["rgb"][0], -1, 0))
    assert ends > 1


@installed
def test_a_seed_draws_the_levels_and_a_reset_in_the_middle_goes_on_to_the_next():
    env = ProcgenEnv("maze")
    drawn = [env.reset(seed=seed)[1]["level_seed"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    env.step(0)
    assert env.reset()[1]["level_seed"] != drawn[2]


@installed
def test_many_copies_in_one_native_step_play_as_copies_of_procgen():
    envs = ProcgenVectorEnv(3, "coinrun", num_levels=200)
    observation, info = envs.reset(seed=3)
    own = sys.modules["procgen.env"].ProcgenGym3Env(num=3, env_name="coinrun", num_levels=200, distribution_mode="easy", rand_seed=3)
    assert observation.shape == (3, 3, 64, 64)
    assert (info["level_seed"] < 200).all()
    ends = 0
    for actions in np.random.default_rng(0).integers(15, size=(1500, 3)):
        own.act(actions.astype(np.int32))
        reward, shown, begun = own.observe()
        observation, mine, terminated, truncated, info = envs.step(actions)
        np.testing.assert_array_equal(observation, np.moveaxis(shown["rgb"], -1, 1))
        np.testing.assert_array_equal(mine, reward)
        np.testing.assert_array_equal(terminated, begun)
        assert not truncated.any()
        assert ("final_obs" in info) == bool(terminated.any())
        ends += int(terminated.sum())
    assert ends > 2
    with pytest.raises(InvalidInput, match="none is reset alone"):
        envs.reset(options={"reset_mask": np.array([True, False, False])})


@installed
@pytest.mark.parametrize("count", [1, 4])
def test_collected_episodes_know_their_level(count, tmp_path):
    with Collector("offrld/procgen-coinrun-train-v0", frames_per_batch=400, envs=count, into=tmp_path / "store", seed=5) as collector:
        for _ in range(5):
            collector.run(400)
    store = EpisodeStore.open(tmp_path / "store")
    levels = [store.episode_metadata(i)["level_seed"] for i in range(len(store))]
    assert len(set(levels)) > 2
    assert all(0 <= level < 200 for level in levels)
    assert sum(episode.steps for episode in store.episodes) == 2000
    # The first frame of an episode is that level's own.
    first = store.episodes[0]
    env = ProcgenEnv("coinrun", num_levels=1, start_level=levels[0])
    np.testing.assert_array_equal(env.reset(seed=0)[0], first.observation[0])


@installed
@pytest.mark.parametrize(
    ("options", "says"), [({"distribution_mode": "memory"}, "'memory'"), ({"num_levels": -1}, "num_levels is -1"), ({"wings": 2}, "wings")]
)
def test_settings_that_are_none_are_refused(options, says):
    with pytest.raises(InvalidInput, match=says):
        ProcgenEnv("coinrun", **options).reset(seed=0)


@installed
def test_a_game_that_is_none_is_answered_with_the_nearest():
    with pytest.raises(Unknown) as caught:
        ProcgenEnv("coinrum")
    assert "coinrun" in caught.value.hint
