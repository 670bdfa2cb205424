"""Policies of images, of several observation fields and of stacked frames: from a store to the actions of onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrl import Policy
from offrl_store import Episode, EpisodeStore, Field, Schema
from offrld.algos import get
from offrld.engine import Learner
from offrld.state.run_folder import RunFolder
from offrld.worker.policy_files import PolicyFiles

SMALL = {"filters": [8, 5, 3, 8, 3, 2], "feature_size": 16}
ENCODERS = {
    "discrete_cql": ("encoder",), "discrete_bcq": ("encoder",), "td3_bc": ("actor_encoder", "critic_encoder"),
    "bcq": ("actor_encoder", "critic_encoder", "imitator_encoder"), "bc": ("encoder",),
}  # fmt: skip


def filled(path, observation, action):
    """Write random episodes of these fields; images are uint8."""
    noise = np.random.default_rng(0)

    def rows(field, count):
        if field.dtype == np.uint8:
            return noise.integers(0, 256, (count, *field.shape), np.uint8)
        return noise.standard_normal((count, *field.shape)).astype(field.dtype)

    store = EpisodeStore.create(path, Schema(observation=observation, action=action))
    with store.writer() as writer:
        for steps in (6, 11, 9):
            several = isinstance(observation, dict)
            seen = {n: rows(f, steps + 1) for n, f in observation.items()} if several else rows(observation, steps + 1)
            acted = noise.integers(0, 3, steps) if action.discrete else noise.uniform(-2, 2, (steps, 2)).astype(np.float32)
            writer.append(Episode(seen, acted, noise.standard_normal(steps).astype(np.float32), terminated=steps == 9))
    return EpisodeStore.open(path)


IMAGE = Field("uint8", (3, 24, 20))
DISCRETE, CONTINUOUS = Field("int64", low=0, high=2), Field("float32", (2,), low=-2, high=2)
KINDS = {
    "image": IMAGE,
    "camera and arm": {"camera": IMAGE, "arm": Field("float32", (5,)), "gripper": Field("float64", ())},
    "vectors": {"arm": Field("float32", (5,)), "gripper": Field("float16", (2,))},
}


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENCODERS)
def test_the_file_acts_like_the_network_on_every_kind_of_observation(name, kind, frames, tmp_path):
    algorithm = get(name)
    store = filled(tmp_path / "store", KINDS[kind], DISCRETE if algorithm.actions == "discrete" else CONTINUOUS)
    images = "vectors" not in kind
    values = {f"{slot}.{part}": value for slot in ENCODERS[name] for part, value in (SMALL if images else {"units": [16]}).items()}
    config = algorithm.configure({"batch_size": 8, "frame_stack": frames, **values})
    learner = Learner.create(algorithm, config, store)
    learner.run(3)
    path = PolicyFiles(learner, RunFolder(tmp_path / "run"), job="1", dataset="d").export(0)

    module, policy = learner.policy(0), Policy(path)
    policy.reset()
    episode = store.episodes[1].observation
    fields = episode if isinstance(episode, dict) else {"observation": episode}
    for t in range(6):
        now = {n: rows[t] for n, rows in fields.items()}
        observation = now if isinstance(episode, dict) else now["observation"]
        stacked = {n: torch.from_numpy(_stack(rows, t, frames))[None] for n, rows in fields.items()}
        expected = module(**stacked) if isinstance(episode, dict) else module(stacked["observation"])
        np.testing.assert_allclose(policy.act(observation), expected[0].numpy(), atol=1e-4)


def _stack(rows, t, frames):
    """Join the last frames up to time t along the first axis, with zeros before the episode."""
    parts = [rows[i] if i >= 0 else np.zeros_like(rows[0]) for i in range(t - frames + 1, t + 1)]
    return np.array(rows[t]) if frames == 1 else np.concatenate([np.atleast_1d(part) for part in parts])
