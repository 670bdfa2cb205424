"""What `client.datasets.add` takes in memory: arrays of every kind arrive exactly, or are refused in one line that names them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offrl.errors import InvalidInput, OffrlError
from offrl_store import Episode, EpisodeStore

N = 20


def arrays(**more) -> dict:
    return {
        "observations": np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32),
        "rewards": np.ones(N, np.float32),
        "actions": np.linspace(-1, 1, N, dtype=np.float32).reshape(N, 1),
        "terminals": np.arange(N) % 10 == 9,
        **more,
    }


@pytest.fixture
def added(daemon, client):
    """Adds a source as a dataset, which goes with the test; its store."""
    names: list[str] = []

    def add(source) -> EpisodeStore:
        client.datasets.add(f"arrays-{len(names)}", source)
        names.append(f"arrays-{len(names)}")
        return EpisodeStore.open(daemon.state_dir / "datasets" / names[-1])

    yield add
    for name in names:
        client.datasets.rm(name)


WIDE = np.random.default_rng(1).normal(size=(N, 6))


def read_only() -> np.ndarray:
    array = WIDE.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "observations",
    [
        WIDE,
        WIDE.astype(np.float32),
        WIDE.astype(">f8"),
        WIDE[:, ::2],
        WIDE[:, ::-1],
        np.asfortranarray(WIDE),
        read_only(),
        WIDE.tolist(),
        np.ma.array(WIDE),
        torch.from_numpy(WIDE),
        torch.from_numpy(WIDE).requires_grad_(),
        torch.from_numpy(WIDE).float()[:, 1:4],
        list(torch.from_numpy(WIDE)),
        torch.arange(N * 2).reshape(N, 2).to(torch.bfloat16),
    ],
    ids=str,
)
def test_observations_of_every_kind_arrive_exactly(added, observations):
    store = added(arrays(observations=observations))
    rows = np.concatenate([episode.observation[: episode.steps] for episode in store.episodes])
    due = torch.stack(observations) if isinstance(observations, list) and isinstance(observations[0], torch.Tensor) else observations
    due = due.detach().double().numpy() if isinstance(due, torch.Tensor) else np.asarray(due)
    np.testing.assert_array_equal(rows, due)


def test_a_whole_dict_of_tensors(added):
    store = added({name: torch.from_numpy(array) for name, array in arrays().items()})
    assert len(store) == 2 and store.episodes[0].terminated


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"observations": np.ma.array(WIDE, mask=WIDE > 2)}, r"observations\[.*\] is masked"),
        ({"observations": [["a"]] * N}, "observations holds text: a"),
        ({"observations": np.full((N, 1), None)}, "observations holds Python objects: None"),
        ({"observations": np.full((N, 1), "1.5")}, "observations holds text"),
        ({"observations": WIDE + 1j}, "observations holds complex numbers"),
        ({"observations": np.full((N, 1), "2020-01-01", "M8[s]")}, "observations holds times"),
        ({"observations": [[1.0]] * (N - 1) + [[1.0, 2.0]]}, "rows differ in shape"),
        ({"observations": [[2**53 + 1, 0.5]] * N}, "whole numbers that no float holds"),
        ({3: WIDE}, "3 is not a key"),
        ({"infos": {"a": WIDE}, "infos/a": WIDE}, "two arrays are called 'infos/a'"),
    ],
)
def test_what_would_not_be_exact_is_refused_before_anything_is_sent(client, more, said):
    with pytest.raises(InvalidInput, match=said) as caught:
        client.datasets.add("refused", arrays() | more)
    assert "\n" not in str(caught.value)


def episode(observation, action, reward=(1.0, 1.0), **more) -> Episode:
    return Episode(observation, action, reward, True, **more)


def test_episodes_of_lists_keep_their_numbers_whichever_come_first(added):
    store = added([episode([[0], [0], [0]], [[0], [0]]), episode([[0.1], [1e9 + 0.1], [3]], [[0.7], [-0.7]], [0.1, 2])])
    assert store.episodes[1].observation[:, 0].tolist() == [0.1, 1e9 + 0.1, 3.0]
    assert store.episodes[1].action[:, 0].tolist() == [0.7, -0.7] and store.episodes[1].reward.tolist() == [0.1, 2.0]
    discrete = added([episode([[0], [0], [0]], [0, 1]), episode([[0.5], [0], [0]], [2, 1])])
    assert discrete.schema.action.n == 3
    mixed = added([episode([[0], [0], [0]], [0, 1]), episode([[0.5], [0], [0]], [0.5, 1])])
    assert mixed.episodes[1].action.tolist() == [0.5, 1]
    tensors = added([episode(torch.ones(3, 1, requires_grad=True), torch.zeros(2, 1), torch.ones(2))])
    assert tensors.episodes[0].observation.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (episode(np.zeros((3, 1)), np.zeros((2, 1), np.float32)), "float64"),
        (episode(np.ma.array(np.zeros((3, 1), np.float32), mask=True), np.zeros((2, 1), np.float32)), "is masked"),
        (episode([["a"]] * 3, np.zeros((2, 1), np.float32)), "episode 1, field observation"),
    ],
)
def test_a_later_episode_that_does_not_fit_is_refused_by_its_number(client, later, said):
    first = episode(np.zeros((3, 1), np.float32), np.zeros((2, 1), np.float32))
    with pytest.raises(OffrlError, match=said) as caught:
        client.datasets.add("refused", [first, later])
    assert caught.value.exit_status == 2 and "episode 1" in str(caught.value)
