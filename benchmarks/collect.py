"""Steps per second of collection into a durable store, compared with the bare loop of the environment and with other libraries.

    python -m benchmarks.collect [--quick]

One core, one environment, a 256x256 policy (its exported file) or uniform actions. Figures are medians of alternating rounds, by wall clock
and by processor time, which is more reliable on a shared machine. The limit is the bare loop, which steps the environment with the same
kind of actions and stores nothing. Peers (.venv-store-peers, made on first use) collect only in CartPole, in alternation with ours: TorchRL
into its memory-mapped buffer, Stable-Baselines3 and d3rlpy into memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offrld
from benchmarks.collect_peers import LIBRARIES, Absent, Peer
from offrl.errors import OffrlError
from offrl.policy import Policy
from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.collect import Collector, RandomBehaviour, as_behaviour, schema_of

STEPS = {  # environment, policy -> steps of a round: some seconds, so that syncs weigh as in a long run
    ("CartPole-v1", "random"): 100_000, ("CartPole-v1", "256x256"): 40_000, ("Hopper-v5", "random"): 12_000,
    ("Hopper-v5", "256x256"): 8_000, ("offrld/breakout-v0", "random"): 2_000,
}  # fmt: skip
ROUNDS = 3


def bare(env: Any, behaviour: Any, steps: int) -> None:
    """Run the loop that stores nothing."""
    rng, space, act, step = np.random.default_rng(0), env.action_space, behaviour.act, env.step
    observation, _ = env.reset(seed=0)
    behaviour.begin_episode(space, rng)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = step(act(observation))
        if terminated or truncated:
            observation, _ = env.reset()
            behaviour.begin_episode(space, rng)


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Measure a call in seconds, by wall clock and by processor time."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - spent


def compare(env_id: str, policy: Callable[[], Any], steps: int, rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Measure steps per second of the bare loop and of the collector, by wall clock and processor: medians of alternating rounds."""
    env = make_env(env_id)
    store = EpisodeStore.create(tempfile.mkdtemp(dir=folder) + "/store", schema_of(env))
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "collector": []}
    with Collector(make_env(env_id), policy(), into=store) as collector:
        behaviour = as_behaviour(policy())
        collector.run(steps // 10)
        bare(env, behaviour, steps // 10)
        for _ in range(rounds):
            times["bare"].append(seconds(lambda: bare(env, behaviour, steps)))

            def collected() -> None:
                collector.run(steps)
                collector.sync()  # the time includes making the steps durable

            times["collector"].append(seconds(collected))
    env.close()
    return {name: tuple(steps / statistics.median(kind) for kind in zip(*each, strict=True)) for name, each in times.items()}


def append_us(env_id: str, steps: int, rounds: int, folder: Path) -> tuple[float, float]:
    """Measure the writer's processor time per step in microseconds, with ends and commit. Also returns the steps per episode."""
    env = make_env(env_id)
    batch = Collector(env, RandomBehaviour(), frames_per_batch=steps).rollout()
    first = np.concatenate([[True], batch.done[:-1]])
    rows = list(
        zip(
            first.tolist(),
            batch.observation,
            batch.action,
            batch.reward.tolist(),
            batch.next_observation,
            batch.terminated.tolist(),
            batch.truncated.tolist(),
            strict=True,
        )
    )
    rows = [(begin, before, action.item() if action.ndim == 0 else action, *rest) for begin, before, action, *rest in rows]
    store = EpisodeStore.create(tempfile.mkdtemp(dir=folder) + "/store", schema_of(env))
    env.close()

    def write() -> None:
        with store.writer() as writer:
            step = writer.step
            for begin, before, action, reward, after, terminated, truncated in rows:
                if begin:
                    writer.begin(before)
                step(action, reward, after, terminated, truncated)

    def empty() -> None:
        for begin, _before, _action, _reward, _after, _terminated, _truncated in rows:
            if begin:
                pass

    write()
    spent = statistics.median(seconds(write)[1] - seconds(empty)[1] for _ in range(rounds))
    return 1e6 * spent / steps, steps / max(1, int(batch.done.sum()))


def beside(name: str, policy: Callable[[], Any], steps: int, peer_steps: int, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """Measure steps per second of another library and of ours, by wall clock and processor: medians of alternating rounds."""
    env = make_env("CartPole-v1")
    store = EpisodeStore.create(tempfile.mkdtemp(dir=folder) + "/store", schema_of(env))
    theirs, ours = [], []
    with Peer(name, peer_steps, folder) as peer, Collector(env, policy(), into=store) as collector:

        def collected() -> None:
            collector.run(steps)
            collector.sync()

        collected()
        for _ in range(rounds):
            theirs.append(peer.round())
            ours.append(tuple(steps / each for each in seconds(collected)))
    env.close()
    return [tuple(statistics.median(kind) for kind in zip(*each, strict=True)) for each in (theirs, ours)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, three rounds")
    quick = parser.parse_args().quick
    rounds = 3 if quick else ROUNDS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="offrl-bench-") as name:
        folder = Path(name)
        print(f"{'steps per second':20} {'acting':8} {'bare':>9} {'ours':>9} {'share':>6}   {'CPU: bare':>10} {'ours':>9} {'share':>6}")
        files: dict[str, Path] = {}
        for (env_id, acting), steps in STEPS.items():
            try:
                make_env(env_id).close()
            except OffrlError as error:
                print(f"{env_id:20} {error}")
                continue
            if acting != "random":
                algorithm = "dqn" if env_id == "CartPole-v1" else "sac"
                files[env_id] = offrld.build(algorithm, offrld.Shapes.of_env(env_id), device="cpu").export(folder / f"{env_id}.onnx")
            policy = RandomBehaviour if acting == "random" else lambda env_id=env_id: Policy(files[env_id])
            figures = compare(env_id, policy, steps // 10 if quick else steps, rounds, folder)
            (limit, limit_cpu), (reached, reached_cpu) = figures["bare"], figures["collector"]
            print(
                f"{env_id:20} {acting:8} {limit:9,.0f} {reached:9,.0f} {reached / limit:6.2f}   {limit_cpu:10,.0f} {reached_cpu:9,.0f} "
                f"{reached_cpu / limit_cpu:6.2f}",
                flush=True,
            )
        for env_id in ("CartPole-v1", "Pendulum-v1"):
            cost, length = append_us(env_id, 2_000 if quick else 20_000, rounds, folder)
            print(f"append, {env_id}: {cost:.2f} us a step, episodes of {length:.0f} steps", flush=True)
        steps = STEPS["CartPole-v1", "256x256"]
        steps, peer_steps = (steps // 10, 2_000) if quick else (steps, 10_000)
        for name, library in LIBRARIES.items():
            try:
                (theirs, theirs_cpu), (ours, ours_cpu) = beside(
                    name, lambda: Policy(files["CartPole-v1"]), steps, peer_steps, rounds, folder
                )
            except Absent as absent:
                print(f"{library}: {absent}")
                continue
            print(
                f"CartPole-v1, 256x256: {library:8} {theirs:9,.0f} (CPU {theirs_cpu:9,.0f}), ours {ours:9,.0f} (CPU {ours_cpu:9,.0f}): "
                f"{ours / theirs:.1f} times as fast (CPU {ours_cpu / theirs_cpu:.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
