"""Steps per second into a durable store, beside the bare loop of the environment and other libraries' collection.

    python -m benchmarks.collect [--quick]

One core, one environment, a 256x256 policy (its exported file) or uniform actions, the median of rounds that take turns, by the wall
clock and by the time of the processor, which tells more where others use the machine. The bare loop steps the environment with the same
kind of actions and keeps nothing: the limit. Peers (.venv-store-peers, made on first use) collect in
CartPole alone: TorchRL into its memory-mapped buffer, Stable-Baselines3 and d3rlpy into memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import offrld
from benchmarks.store_peers import ENVIRONMENT, ROOT, environment, last_line
from offrl.errors import OffrlError
from offrl.policy import Policy
from offrl.rollout import make_env
from offrl_store import EpisodeStore
from offrld.collect import Collector, RandomBehaviour, as_behaviour, schema_of

STEPS = {  # environment, acting -> steps of a round: some seconds, over which syncs count as they do in the long run
    ("CartPole-v1", "random"): 100_000, ("CartPole-v1", "256x256"): 40_000, ("Hopper-v5", "random"): 12_000,
    ("Hopper-v5", "256x256"): 8_000, ("offrld/breakout-v0", "random"): 2_000,
}  # fmt: skip
ROUNDS = 3
PEERS = ("torchrl", "sb3", "d3rlpy")
GYMNASIUM = "gymnasium==1.2.2"  # TorchRL refuses the 1.0.0 that d3rlpy wants


def bare(env: Any, behaviour: Any, steps: int) -> None:
    """The loop that keeps nothing."""
    rng, space, act, step = np.random.default_rng(0), env.action_space, behaviour.act, env.step
    observation, _ = env.reset(seed=0)
    behaviour.begin_episode(space, rng)
    for _ in range(steps):
        observation, _, terminated, truncated, _ = step(act(observation))
        if terminated or truncated:
            observation, _ = env.reset()
            behaviour.begin_episode(space, rng)


def seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """Of the wall clock, and of the processor."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - spent


def compare(env_id: str, policy: Callable[[], Any], steps: int, rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Steps per second of the bare loop and of the collector, by wall clock and processor: medians of rounds in turns."""
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
                collector.sync()  # durable, within the time

            times["collector"].append(seconds(collected))
    env.close()
    return {name: tuple(steps / statistics.median(kind) for kind in zip(*each, strict=True)) for name, each in times.items()}


def append_us(env_id: str, steps: int, rounds: int, folder: Path) -> tuple[float, float]:
    """Microseconds of the processor per step for the writer's calls alone, ends and commit included; and steps per episode."""
    env = make_env(env_id)
    batch = Collector(env, RandomBehaviour(), frames_per_batch=steps).rollout()
    first = np.concatenate([[True], batch.done[:-1]])
    rows = list(zip(first.tolist(), batch.observation, batch.action, batch.reward.tolist(), batch.next_observation,
                    batch.terminated.tolist(), batch.truncated.tolist(), strict=True))  # fmt: skip
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


def peer(name: str, steps: int, rounds: int, folder: Path) -> list[float] | str:
    """Steps per second by wall clock and processor, or why there is no figure."""
    python, failed = environment()
    known = {"torchrl": "TorchRL", "sb3": "SB3", "d3rlpy": "d3rlpy"}[name]
    if known in failed:
        return failed[known]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    if name == "torchrl":
        newer = ENVIRONMENT / "gymnasium-newer"
        if not newer.exists():
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "--target", newer, GYMNASIUM], check=True)
        settings["PYTHONPATH"] = str(newer)
    command = [str(python), str(ROOT / "benchmarks" / "peers" / "collect_peer.py"), name, str(steps), str(rounds), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=600)
    return json.loads(last_line(done.stdout)) if done.returncode == 0 else last_line(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, three rounds")
    quick = parser.parse_args().quick
    rounds = 3 if quick else ROUNDS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="offrl-bench-") as name:
        folder = Path(name)
        print(f"{'steps per second':20} {'acting':8} {'bare':>9} {'ours':>9} {'share':>6}   {'CPU: bare':>10} {'ours':>9} {'share':>6}")
        ours, files = (0.0, 0.0), {}
        for (env_id, acting), steps in STEPS.items():
            try:
                make_env(env_id).close()
            except OffrlError as error:
                print(f"{env_id:20} {error}; {error.hint}")
                continue
            if acting != "random":
                algorithm = "dqn" if env_id == "CartPole-v1" else "sac"
                files[env_id] = offrld.build(algorithm, offrld.Shapes.of_env(env_id), device="cpu").export(folder / f"{env_id}.onnx")
            policy = RandomBehaviour if acting == "random" else lambda env_id=env_id: Policy(files[env_id])
            found = compare(env_id, policy, steps // 10 if quick else steps, rounds, folder)
            (limit, limit_cpu), (reached, reached_cpu) = found["bare"], found["collector"]
            print(f"{env_id:20} {acting:8} {limit:9,.0f} {reached:9,.0f} {reached / limit:6.2f}   {limit_cpu:10,.0f} {reached_cpu:9,.0f} "
                  f"{reached_cpu / limit_cpu:6.2f}", flush=True)  # fmt: skip
            if (env_id, acting) == ("CartPole-v1", "256x256"):
                ours = (reached, reached_cpu)
        for env_id in ("CartPole-v1", "Pendulum-v1"):
            cost, length = append_us(env_id, 2_000 if quick else 20_000, rounds, folder)
            print(f"append, {env_id}: {cost:.2f} us a step, episodes of {length:.0f} steps", flush=True)
        for name in PEERS:
            figure = peer(name, 2_000 if quick else 10_000, rounds, folder)
            said = figure if isinstance(figure, str) else (
                f"{figure[0]:9,.0f} (CPU {figure[1]:9,.0f}), ours {ours[0] / figure[0]:.1f} times as fast (CPU {ours[1] / figure[1]:.1f})"
            )
            print(f"{'CartPole-v1':20} {name}: {said}", flush=True)


if __name__ == "__main__":
    main()
