"""What train jobs share: cards with slots and memory, and CPU threads. Which job may start now, and on which card.

Placing is a pure function of what is there, what is in use and the jobs in their order. A job that has to wait keeps what it waits for:
those behind it start only on what is left, so that a stream of small jobs never keeps a large one out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offrl.errors import InvalidInput, OffrlError

DETECT_S = 20.0  # nvidia-smi on a machine whose driver is just being loaded
CONTEXT_MB = 600  # what a CUDA context, its libraries and kernels take before a job has allocated anything
SEED_MB = 64  # networks, their moments and activations of one seed: a guess, until an attempt has reported its peak
MARGIN = 1.1  # on a measured peak
MB = 1 << 20
UNLISTED = ("/dev/kfd", "/dev/nvidiactl", "/dev/dxg")  # there where a driver of cards is
log = logging.getLogger("offrld.devices")


@dataclass(frozen=True)
class Card:
    """One accelerator. ``name``: what CUDA_VISIBLE_DEVICES takes; ``memory_mb``: None where it is not known and not looked at."""

    name: str
    memory_mb: int | None = None
    slots: int = 1


@dataclass(frozen=True)
class Inventory:
    """All that train jobs may use together. ``cards`` None: it is not known what there is, jobs find out themselves."""

    threads: int
    cards: tuple[Card, ...] | None = None

    @property
    def slots(self) -> int:
        """Jobs that the cards take at once."""
        return sum(card.slots for card in self.cards or ())

    @property
    def most_jobs(self) -> int:
        """Train jobs that may run at once: one for each thread, of which a job may want more. One where there are cards that only the
        workers see: two of them could take the same."""
        return self.threads if self.cards is not None or not any(os.path.exists(path) for path in UNLISTED) else 1


@dataclass(frozen=True)
class Need:
    """What one job needs. ``card``: None (CPU only), "any", or the number of a card; ``firm``: the memory was set by the user."""

    threads: int = 1
    card: int | str | None = None
    memory_mb: int = 0
    firm: bool = False


@dataclass(frozen=True)
class Place:
    """Where a job runs. ``card``: its number in the inventory, None on the CPU."""

    threads: int
    card: int | None = None
    memory_mb: int = 0


def need(spec: Mapping[str, Any], cards: bool, dataset_bytes: int = 0, peak_bytes: int | None = None) -> Need:
    """What a train job takes, from its specification.

    Args:
        cards: whether there are any: without, ``device: auto`` is the CPU.
        dataset_bytes: of the whole dataset, which is kept on the card where it fits.
        peak_bytes: the largest use that an attempt of the job has reported.
    """
    device, threads = str(spec.get("device") or "auto"), int(spec.get("threads") or 1)
    if device == "cpu" or (device == "auto" and not cards):
        return Need(threads)
    card: int | str = int(device.partition(":")[2]) if ":" in device else "any"
    if spec.get("gpu_memory_mb"):
        return Need(threads, card, int(spec["gpu_memory_mb"]), firm=True)
    if peak_bytes is not None:
        return Need(threads, card, CONTEXT_MB + math.ceil(peak_bytes / MB * MARGIN))
    return Need(threads, card, CONTEXT_MB + SEED_MB * len(spec.get("seeds") or [0]) + dataset_bytes // MB)  # `Plan` cuts it to the card


def check(need: Need, inventory: Inventory) -> None:
    """Refuse what can never start here: `InvalidInput`."""
    if need.threads > inventory.threads:
        raise InvalidInput(
            f"threads = {need.threads}, but the jobs of this service have {inventory.threads} CPU threads together",
            hint="ask for fewer, or raise devices.threads in offrld.toml",
        )
    if need.card is None or inventory.cards is None:
        return
    if not inventory.cards:
        raise InvalidInput("the job wants a card, this service has none", hint="submit it with --device cpu")
    if isinstance(need.card, int) and need.card >= len(inventory.cards):
        raise InvalidInput(
            f"device cuda:{need.card}, but there are {len(inventory.cards)} cards: cuda:0 to cuda:{len(inventory.cards) - 1}",
            hint="leave the choice to the service with --device cuda",
        )
    known = [inventory.cards[number].memory_mb for number in _candidates(need, inventory)]
    largest = max((memory for memory in known if memory is not None), default=None)
    if need.firm and largest is not None and None not in known and need.memory_mb > largest:
        raise InvalidInput(
            f"the job asks for {need.memory_mb} MB of a card, the largest that it may take has {largest} MB",
            hint="lower --gpu-memory, or train fewer seeds in one job",
        )


def _candidates(need: Need, inventory: Inventory) -> list[int]:
    assert inventory.cards is not None
    return [need.card] if isinstance(need.card, int) else list(range(len(inventory.cards)))


class Plan:
    """Offer it the waiting jobs in their order: `offer` gives the place of one that may start now, or None and keeps what it waits for."""

    def __init__(self, inventory: Inventory, used: Collection[Place]) -> None:
        self.inventory = inventory
        self._threads = inventory.threads - sum(place.threads for place in used)
        cards = inventory.cards or ()
        self._slots = [card.slots - sum(place.card == number for place in used) for number, card in enumerate(cards)]
        self._memory = [
            None if card.memory_mb is None else card.memory_mb - sum(place.memory_mb for place in used if place.card == number)
            for number, card in enumerate(cards)
        ]

    @property
    def exhausted(self) -> bool:
        """Nothing is left that any job could start on."""
        return self._threads <= 0

    def offer(self, need: Need) -> Place | None:
        """Raises `InvalidInput` where the job can never start here."""
        check(need, self.inventory)
        if need.card is None or self.inventory.cards is None:
            return self._take(need, None)
        possible = _candidates(need, self.inventory)
        fitting = [number for number in possible if self._slots[number] > 0 and self._fits(need, number)]
        if not fitting or need.threads > self._threads:
            self._threads -= need.threads
            for number in possible:  # those behind it must not take the card that it waits for
                self._slots[number] = 0
            return None
        # The emptiest card: jobs that run side by side share its bandwidth as well as its memory.
        return self._take(need, max(fitting, key=lambda number: (self._room(number), -number)))

    def _take(self, need: Need, card: int | None) -> Place | None:
        possible = need.threads <= self._threads
        self._threads -= need.threads
        if not possible:
            return None
        memory = 0
        if card is not None:
            self._slots[card] -= 1
            memory = self._claimed(need, card)
            if (left := self._memory[card]) is not None:
                self._memory[card] = left - memory
        return Place(need.threads, card, memory)

    def _claimed(self, need: Need, number: int) -> int:
        """The memory that is set aside. A guess or an old peak never asks for more than the card has: alone on it the job may try."""
        memory = self.inventory.cards[number].memory_mb  # type: ignore[index]
        return need.memory_mb if memory is None or need.firm else min(need.memory_mb, memory)

    def _fits(self, need: Need, number: int) -> bool:
        left = self._memory[number]
        return left is None or self._claimed(need, number) <= left

    def _room(self, number: int) -> tuple[int, int]:
        card = self.inventory.cards[number]  # type: ignore[index]
        # Jobs that are on it first, then free memory.
        return self._slots[number] - card.slots, self._memory[number] or 0


# --------------------------------------------------------------------------------------------------------------------- what is there
def threads_here() -> int:
    """CPU threads that this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


async def detect(proc: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[Card, ...]:
    """The cards of this machine, seen without loading a CUDA library: `nvidia-smi`, else the driver's folder. None: an empty tuple."""
    if not proc.is_dir():  # no driver: do not even look for its tool
        return ()
    cards: list[Card] = []
    try:
        process = await asyncio.create_subprocess_exec(
            "nvidia-smi",
            "--query-gpu=uuid,memory.total",
            "--format=csv,noheader,nounits",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        log.warning("nvidia-smi cannot be run (%s): the memory of the cards is not known", error)
    else:
        try:
            output, _ = await asyncio.wait_for(process.communicate(), DETECT_S)
            cards = parse(output.decode(errors="replace"))
        except TimeoutError:
            log.warning("nvidia-smi has not answered in %.0f s: the memory of the cards is not known", DETECT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if not cards:
        cards = [Card(str(number)) for number in range(sum(1 for _ in proc.iterdir()))]
    return visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse(text: str) -> list[Card]:
    """The lines "UUID, MEGABYTES" of nvidia-smi."""
    cards = []
    for line in text.splitlines():
        uuid, _, memory = (part.strip() for part in line.partition(","))
        if uuid.startswith("GPU-"):
            cards.append(Card(uuid, int(memory) if memory.isdigit() else None))
    return cards


def visible(cards: Collection[Card], chosen: str | None) -> tuple[Card, ...]:
    """The cards that CUDA_VISIBLE_DEVICES of the daemon itself leaves, in its order; None: all."""
    if chosen is None:
        return tuple(cards)
    found, every = [], list(cards)
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        if name.isdigit() and int(name) < len(every):
            found.append(every[int(name)])
        elif name.startswith(("GPU-", "MIG-")):
            found.append(next((card for card in every if card.name.startswith(name)), Card(name)))
        else:  # as CUDA does: what follows an unknown one is not seen
            break
    return tuple(found)


async def inventory(cards: Any, slots: int, memory_mb: int, threads: int) -> Inventory:
    """The inventory of the settings ``[devices]``; see `config.Devices`."""
    if cards == "auto":
        found = await detect()
    else:
        found = tuple(Card(str(name)) for name in cards)
        if found and not memory_mb:
            detected = {card.name: card for card in await detect()}
            numbered = list(detected.values())
            found = tuple(
                detected.get(card.name) or (numbered[int(card.name)] if card.name.isdigit() and int(card.name) < len(numbered) else card)
                for card in found
            )
    known = tuple(Card(card.name, memory_mb or card.memory_mb, slots) for card in found)
    # Nothing found by itself says little (another maker's card, a container without the tool): the workers look for themselves.
    return Inventory(threads or threads_here(), known if known or cards != "auto" else None)


@dataclass
class Pool:
    """The inventory and the places that are in use now, by job."""

    inventory: Inventory
    used: dict[str, Place] = field(default_factory=dict)

    def plan(self) -> Plan:
        return Plan(self.inventory, self.used.values())

    def environment(self, place: Place | None, device: str) -> dict[str, str]:
        """What the worker's libraries have to see: its card alone, or none."""
        if self.inventory.cards is None:
            return {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        card = place.card if place is not None else None
        return {"CUDA_VISIBLE_DEVICES": self.inventory.cards[card].name if card is not None else ""}

    def refused(self, spec: Mapping[str, Any]) -> OffrlError | None:
        """Why a train job can never run here, None where it can."""
        try:
            check(need(spec, bool(self.inventory.cards)), self.inventory)
        except InvalidInput as error:
            return error
        return None
