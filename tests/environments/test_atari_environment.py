"""The Atari environment: the frames of the replay data, and the options of d4rl-atari, in the real emulator."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import gymnasium
import numpy as np
import pytest
from ale_py.env import AtariEnv as Emulator
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import AtariPreprocessing

from offrl import environments
from offrl.environments import games
from offrl.environments.atari import AtariEnv
from offrl.errors import InvalidInput, Unknown
from offrl.rollout import make_env


def play(env, actions, seed=0):
    """Observations (with that of the reset), rewards and ends of a fixed sequence of actions, on a new game where one ends."""
    observation, _ = env.reset(seed=seed)
    seen, rewards, ends = [observation], [], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(int(action))
        seen.append(observation)
        rewards.append(reward)
        ends.append(terminated)
        if terminated or truncated:
            seen.append(env.reset()[0])
    env.close()
    return np.array(seen), np.array(rewards), np.array(ends)


@pytest.mark.parametrize(("game", "sticky", "noops"), [("breakout", 0.25, 0), ("breakout", 0.0, 30), ("seaquest", 0.25, 30)])
def test_frames_and_rewards_are_those_of_gymnasium_s_preprocessing(game, sticky, noops):
    """K07, K09, K12, K13: skip, maximum, grey, area resize, sticky actions and no-ops, over several games, bit for bit."""
    base = Emulator(game=games.rom(game), frameskip=1, repeat_action_probability=sticky)
    reference = AtariPreprocessing(base, noop_max=noops, frame_skip=4, screen_size=84)
    actions = np.random.default_rng(1).integers(base.action_space.n, size=400)
    expected = play(reference, actions)
    ours = play(AtariEnv(game, sticky_actions=sticky, noop_max=noops), actions)
    np.testing.assert_array_equal(ours[0][:, 0], expected[0])
    np.testing.assert_array_equal(ours[1], expected[1])
    np.testing.assert_array_equal(ours[2], expected[2])
    assert ours[0].dtype == np.uint8 and ours[1].any()
    assert ours[2].any() == (game == "breakout")


def test_a_frame_is_the_larger_of_the_last_two_in_grey_resized_by_area():
    """K12, K13: from the emulator itself, without either wrapper; the rewards of the four frames are summed."""
    env = AtariEnv("space-invaders", sticky_actions=False)
    emulator = Emulator(game="space_invaders", frameskip=1, repeat_action_probability=0)
    env.reset(seed=5)
    emulator.reset(seed=5)
    for action in np.random.default_rng(2).integers(6, size=120):
        screens, total = [], 0.0
        for _ in range(4):
            total += emulator.step(int(action))[1]
            screens.append(emulator.ale.getScreenGrayscale())
        observation, reward, *_ = env.step(action)
        pooled = cv2.resize(np.maximum(screens[2], screens[3]), (84, 84), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(observation[0], pooled)
        assert reward == total


def test_sticky_actions_repeat_the_action_before():
    """K09: on, as the data were made, the same actions from the same start lead elsewhere; off, they lead to the same frames."""
    actions = np.random.default_rng(3).integers(4, size=60)
    sticky = [play(AtariEnv("breakout"), actions, seed)[0] for seed in (0, 1)]
    plain = [play(AtariEnv("breakout", sticky_actions=False), actions, seed)[0] for seed in (0, 1)]
    assert not np.array_equal(*sticky) and np.array_equal(*plain)
    np.testing.assert_array_equal(sticky[0], play(AtariEnv("breakout", sticky_actions=True), actions, 0)[0])  # the seed decides


def test_stacked_observations_begin_with_zero_frames():
    """K08: (4, 84, 84), the newest last; each stack is the one before moved on by one frame, also after a reset."""
    actions = np.random.default_rng(4).integers(4, size=350)
    frames, _, ends = play(AtariEnv("breakout"), actions)
    stacks, _, _ = play(AtariEnv("breakout", stack=4), actions)
    assert stacks.shape == (len(frames), 4, 84, 84) and ends.any()
    np.testing.assert_array_equal(stacks[:, -1], frames[:, 0])
    starts = [0, *(np.flatnonzero(ends) + 2 + np.arange(ends.sum()))]
    for t in range(1, len(stacks)):
        if t in starts:
            assert not stacks[t, :3].any()
        else:
            np.testing.assert_array_equal(stacks[t, :3], stacks[t - 1, 1:])
    assert not stacks[0, :3].any()


def test_a_lost_life_ends_the_episode_and_the_game_goes_on():
    """K11: five lives of Breakout are five episodes of one game; the frame counter continues after a reset and restarts after game over."""
    env = AtariEnv("breakout", terminal_on_life_loss=True)
    _, info = env.reset(seed=0)
    rng, lives, counters = np.random.default_rng(0), [info["lives"]], []
    while len(lives) < 7:
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(int(rng.integers(4)))
        lives.append(info["lives"])
        before = info["episode_frame_number"]
        _, info = env.reset()
        counters.append((before, info["episode_frame_number"]))
    assert lives == [5, 4, 3, 2, 1, 0, 4]
    assert [after - before for before, after in counters[:4]] == [4] * 4  # one no-op step of four frames
    assert counters[4][1] < counters[4][0]  # a new game
    assert counters[5][1] == counters[5][0] + 4
    _, info = env.reset(seed=1)
    assert info["lives"] == 5  # a seed begins a new game


def test_rewards_are_clipped_where_that_is_asked_for():
    """K10: [-1, 1], and what it was in the info."""
    actions = np.random.default_rng(5).integers(6, size=500)
    _, plain, _ = play(AtariEnv("space-invaders"), actions)
    _, clipped, _ = play(AtariEnv("space-invaders", clip_reward=True), actions)
    assert plain.max() > 1
    np.testing.assert_array_equal(clipped, np.clip(plain, -1, 1))
    env = AtariEnv("space-invaders", clip_reward=True)
    env.reset(seed=0)
    raw = [env.step(int(action))[4]["raw_reward"] for action in actions[: int(np.argmax(plain > 1)) + 1]]
    assert raw[-1] == plain[plain > 1][0]


def test_every_game_has_its_ids_and_a_rom():
    """K01: the 62 games; the environment of an id has the minimal actions of its game, and half an hour of play."""
    environments.register()
    environments.register()  # again changes nothing
    from ale_py import roms

    assert len(games.GAMES) == 62 and games.GAMES[0] == "adventure" and games.GAMES[-1] == "zaxxon"
    known = set(roms.get_all_rom_ids())
    for game in games.GAMES:
        assert games.rom(game) in known and games.from_camel(games.camel(game)) == game
        for variant in ("", "train", "noop"):
            assert environments.atari_id(game, variant) in gymnasium.registry
    assert games.camel("space-invaders") == "SpaceInvaders"
    env = make_env("offrld/ms-pacman-v0")
    assert env.action_space.n == 9 and env.observation_space.shape == (1, 84, 84) and env.spec.max_episode_steps == 27_000
    assert env.unwrapped.get_action_meanings()[:2] == ["NOOP", "UP"]
    env.close()


def test_the_variants_are_training_and_d4rl_atari_s_default():
    env = make_env("offrld/breakout-train-v0")
    env.reset(seed=0)
    ends, lives = 0, []
    for _ in range(300):
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        assert reward in (-1, 0, 1)
        if terminated:
            ends, lives = ends + 1, [*lives, info["lives"]]
            env.reset()
    assert ends >= 3 and lives[0] == 4
    noop = make_env("offrld/breakout-noop-v0")
    begun = {noop.reset(seed=seed)[1]["episode_frame_number"] for seed in range(12)}
    assert len(begun) > 4 and max(begun) <= 31
    for each in (env, noop):
        each.close()


def test_gymnasium_accepts_it():
    check_env(make_env("offrld/pong-v0").unwrapped, skip_render_check=False)
    env = make_env("offrld/pong-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (210, 160, 3)
    env.close()


@pytest.mark.parametrize(
    "settings", [{"stack": 0}, {"frame_skip": 0}, {"noop_max": -1}, {"sticky_actions": 1.5}, {"stack": True}, {"noop_max": 2.5}]
)
def test_bad_settings_are_named(settings):
    with pytest.raises(InvalidInput, match=next(iter(settings))):
        AtariEnv("pong", **settings)


def test_an_unknown_game_or_action_is_named():
    with pytest.raises(Unknown, match="brekout") as caught:
        AtariEnv("brekout")
    assert "breakout" in caught.value.hint
    with pytest.raises(Unknown, match="offrld/brekout-v0") as caught:
        make_env("offrld/brekout-v0")
    assert "offrld/breakout-v0" in caught.value.hint
    env = AtariEnv("breakout")
    env.reset(seed=0)
    for action in (-1, 4):
        with pytest.raises(InvalidInput, match=f"action {action}"):
            env.step(action)


def test_without_ale_py_one_line_says_what_to_install():
    program = (
        "import sys; sys.modules['ale_py'] = None\n"
        "from offrl.rollout import make_env\nfrom offrl.errors import OffrlError\nimport json\n"
        "try: make_env('offrld/breakout-v0')\nexcept OffrlError as error: print(json.dumps([error.code, str(error), error.hint]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, check=True)
    code, message, hint = json.loads(done.stdout)
    assert code == "invalid_input" and "offrld/breakout-v0" in message and hint == 'pip install "offrl[gym,atari]"'
