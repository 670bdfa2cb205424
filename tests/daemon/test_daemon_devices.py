"""Placement of jobs on cards and CPU threads, tested as a pure function."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from offrl.errors import InvalidInput
from offrld.daemon.workers.placement import CONTEXT_MB, MB, Card, Inventory, Need, Place, Plan, check, inventory, need, parse, visible


def test_the_need_of_a_job_is_set_measured_or_estimated() -> None:
    spec = {"device": "auto", "threads": 2, "seeds": [0, 1]}
    assert need(spec, cards=False) == Need(2)
    assert need({**spec, "device": "cpu"}, cards=True) == Need(2)
    assert need({**spec, "gpu_memory_mb": 5000}, True, 10 * MB, 20 * MB) == Need(2, "any", 5000, firm=True)
    assert need({**spec, "device": "cuda:3"}, True, 0, 1000 * MB) == Need(2, 3, CONTEXT_MB + 1100)
    guess, larger = (need(spec, True, dataset * MB).memory_mb for dataset in (100, 300))
    assert larger - guess == 200


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Need(9), "threads = 9"),
        (Need(1, 2, 0), "cuda:2"),
        (Need(1, 0, 3000, firm=True), "3000 MB"),
        (Need(1, "any", 9000, firm=True), "9000 MB"),
    ],
)
def test_a_job_that_can_never_run_here_is_refused(wanted: Need, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check(wanted, Inventory(8, (Card("a", 2000), Card("b", 8000))))


def test_a_job_whose_estimate_exceeds_the_card_runs_alone_on_it() -> None:
    cards = Inventory(8, (Card("a", 2000, slots=2),))
    plan = Plan(cards, [])
    assert plan.offer(Need(1, "any", 50_000)) == Place(1, 0, 2000)
    assert plan.offer(Need(1, "any", 100)) is None


def test_the_emptiest_card_is_chosen_and_a_job_waits_for_a_named_one() -> None:
    cards = Inventory(16, (Card("a", 1000, 2), Card("b", 2000, 2)))
    used = [Place(1, 1, 100)]
    assert Plan(cards, used).offer(Need(1, "any", 100)).card == 0
    assert Plan(cards, [Place(1, 0, 100), *used]).offer(Need(1, "any", 100)).card == 1
    full = Plan(cards, [Place(1, 0, 10), Place(1, 0, 10)])
    assert full.offer(Need(1, 0, 10)) is None
    assert full.offer(Need(1, "any", 10)) == Place(1, 1, 10)
    assert full.offer(Need(1)) == Place(1)


def test_small_jobs_never_keep_a_large_one_out() -> None:
    """Jobs of random sizes keep coming; the first waiting job starts at the latest when all jobs before it have ended."""
    random_ = random.Random(5)
    cards = Inventory(8, (Card("a", 1000, 2), Card("b", 3000, 3)))
    waited = 0
    for _round in range(300):
        used = []
        for _ in range(30):
            place = Plan(cards, used).offer(_any(random_))
            used += [place] if place is not None else []
        before = len(used)
        large = Need(random_.randint(1, 8), random_.choice([None, "any", 0, 1]), random_.randint(0, 900))
        for ended in range(before + 1):
            plan = Plan(cards, used)
            if plan.offer(large) is not None:
                break
            assert ended < before, f"{large} still waits although all that ran before it have ended"
            waited += 1
            small = [plan.offer(_any(random_)) for _ in range(20)]  # start behind it, on what is left
            used = used[1:] + [place for place in small if place is not None]
    assert waited > 300


def test_slots_memory_and_threads_are_never_given_twice() -> None:
    random_ = random.Random(6)
    for _round in range(200):
        cards = Inventory(
            random_.randint(1, 12), tuple(Card(str(n), random_.choice([None, 500, 4000]), random_.randint(1, 3)) for n in range(3))
        )
        used: list[Place] = []
        plan = Plan(cards, used)
        for _ in range(40):
            try:
                place = plan.offer(_any(random_))
            except InvalidInput:
                continue
            used += [place] if place is not None else []
        assert sum(place.threads for place in used) <= cards.threads
        for number, card in enumerate(cards.cards or ()):
            here = [place for place in used if place.card == number]
            assert len(here) <= card.slots
            assert card.memory_mb is None or sum(place.memory_mb for place in here) <= card.memory_mb
        if cards.threads - sum(place.threads for place in used) <= 0:
            assert plan.exhausted


def _any(random_: random.Random) -> Need:
    return Need(random_.randint(1, 4), random_.choice([None, "any", 0, 1]), random_.randint(0, 600), random_.random() < 0.3)


# --------------------------------------------------------------------------------------------------------------------- what is there
SMI = "GPU-11111111-aa, 81559\nGPU-22222222-bb, 24564\nGPU-33333333-cc, [N/A]\n"


def test_the_cards_that_the_driver_shows() -> None:
    cards = parse(SMI)
    assert cards == [Card("GPU-11111111-aa", 81559), Card("GPU-22222222-bb", 24564), Card("GPU-33333333-cc", None)]
    assert parse("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []
    assert visible(cards, None) == tuple(cards)
    assert visible(cards, "") == ()
    assert visible(cards, "1,0") == (cards[1], cards[0])
    assert visible(cards, "GPU-2222") == (cards[1],)
    assert visible(cards, "1,7,0") == (cards[1],)
    assert visible(cards, "MIG-x") == (Card("MIG-x"),)


async def _inventory(*arguments: object) -> Inventory:
    return await inventory(*arguments)


def test_the_settings_decide_what_jobs_may_use() -> None:
    found = asyncio.run(_inventory([0, "GPU-x"], 3, 9000, 5))
    assert found == Inventory(5, (Card("0", 9000, 3), Card("GPU-x", 9000, 3)))
    assert found.slots == 6
    assert asyncio.run(_inventory([], 1, 0, 2)) == Inventory(2, ())
    if not Path("/proc/driver/nvidia/gpus").is_dir():
        assert asyncio.run(_inventory("auto", 1, 0, 2)) == Inventory(2, None)  # unknown: the workers look for themselves
