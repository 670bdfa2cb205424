"""Placement of train jobs, which share cards (slots and memory) and CPU threads: which job may start now, and on which card.

Placement is a pure function of the inventory, the places in use and the jobs in their order. A job that has to wait reserves what it
waits for: the jobs behind it start only on the rest, so a stream of small jobs never keeps a large one out.
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

DETECT_S = 20.0  # for nvidia-smi on a machine that is still loading its driver
CONTEXT_MB = 600  # memory of a CUDA context, its libraries and kernels before a job allocates anything
SEED_MB = 64  # networks, optimizer state and activations of one seed: an estimate until an attempt has reported its peak
MARGIN = 1.1  # factor on a measured peak
MB = 1 << 20
UNLISTED = ("/dev/kfd", "/dev/nvidiactl", "/dev/dxg")  # exist if the driver of a card is loaded
log = logging.getLogger("offrld.devices")


@dataclass(frozen=True)
class Card:
    """One accelerator. ``name``: its name in CUDA_VISIBLE_DEVICES; ``memory_mb``: None if unknown, and then not checked."""

    name: str
    memory_mb: int | None = None
    slots: int = 1


@dataclass(frozen=True)
class Inventory:
    """Everything that train jobs may use together. ``cards`` None: the cards are unknown, and jobs look for themselves."""

    threads: int
    cards: tuple[Card, ...] | None = None

    @property
    def slots(self) -> int:
        """Number of jobs that fit on the cards at once."""
        return sum(card.slots for card in self.cards or ())

    @property
    def most_jobs(self) -> int:
        """Upper limit of train jobs at once: one for each thread (a job may need several).

        Only one if the machine has cards that only the workers see: two workers could choose the same card.
        """
        return self.threads if self.cards is not None or not any(os.path.exists(path) for path in UNLISTED) else 1


@dataclass(frozen=True)
class Need:
    """What one job needs. ``card``: None (CPU only), "any", or the number of a card; ``firm``: the user set the memory."""

    threads: int = 1
    card: int | str | None = None
    memory_mb: int = 0
    firm: bool = False


@dataclass(frozen=True)
class Place:
    """Where a job runs. ``card``: the card's number in the inventory; None for the CPU."""

    threads: int
    card: int | None = None
    memory_mb: int = 0


def need(spec: Mapping[str, Any], cards: bool, dataset_bytes: int = 0, peak_bytes: int | None = None) -> Need:
    """Return what a train job needs, from its specification.

    Args:
        cards: whether there are any; without cards, ``device: auto`` means the CPU.
        dataset_bytes: size of the whole dataset, which stays on the card if it fits.
        peak_bytes: the largest memory use that an attempt of the job has reported.
    """
    device, threads = str(spec.get("device") or "auto"), int(spec.get("threads") or 1)
    if device == "cpu" or (device == "auto" and not cards):
        return Need(threads)
    card: int | str = int(device.partition(":")[2]) if ":" in device else "any"
    if spec.get("gpu_memory_mb"):
        return Need(threads, card, int(spec["gpu_memory_mb"]), firm=True)
    if peak_bytes is not None:
        return Need(threads, card, CONTEXT_MB + math.ceil(peak_bytes / MB * MARGIN))
    return Need(threads, card, CONTEXT_MB + SEED_MB * len(spec.get("seeds") or [0]) + dataset_bytes // MB)  # `Plan` caps it


def check(need: Need, inventory: Inventory) -> None:
    """Raise `InvalidInput` if a job with this need can never start here."""
    if need.threads > inventory.threads:
        raise InvalidInput(
            f"threads = {need.threads}, but all jobs of this service together have {inventory.threads} CPU threads",
            hint="use fewer, or raise devices.threads in offrld.toml",
        )
    if need.card is None or inventory.cards is None:
        return
    if not inventory.cards:
        raise InvalidInput("the job requires a GPU, but this service has none", hint="submit it with --device cpu")
    if isinstance(need.card, int) and need.card >= len(inventory.cards):
        raise InvalidInput(
            f"device cuda:{need.card}, but there are {len(inventory.cards)} GPUs: cuda:0 to cuda:{len(inventory.cards) - 1}",
            hint="leave the choice to the service with --device cuda",
        )
    memories = [inventory.cards[number].memory_mb for number in _candidates(need, inventory)]
    largest = max((memory for memory in memories if memory is not None), default=None)
    if need.firm and largest is not None and None not in memories and need.memory_mb > largest:
        raise InvalidInput(
            f"the job requests {need.memory_mb} MB of GPU memory, but the largest GPU that it may use has {largest} MB",
            hint="lower --gpu-memory, or train fewer seeds in one job",
        )


def _candidates(need: Need, inventory: Inventory) -> list[int]:
    assert inventory.cards is not None
    return [need.card] if isinstance(need.card, int) else list(range(len(inventory.cards)))


class Plan:
    """One round of placement. `offer` it the waiting jobs in their order: a job either gets a place or reserves what it waits for."""

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
        """Whether too little is left for any job."""
        return self._threads <= 0

    def offer(self, need: Need) -> Place | None:
        """Return the place of a job that may start now, else None. Raises `InvalidInput` if the job can never start here."""
        check(need, self.inventory)
        if need.card is None or self.inventory.cards is None:
            return self._take(need, None)
        possible = _candidates(need, self.inventory)
        free = [number for number in possible if self._slots[number] > 0 and self._fits(need, number)]
        if not free or need.threads > self._threads:
            self._threads -= need.threads
            for number in possible:  # the jobs behind it must not take the card that it waits for
                self._slots[number] = 0
            return None
        # The emptiest card: jobs on one card share its bandwidth as well as its memory.
        return self._take(need, max(free, key=lambda number: (self._room(number), -number)))

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
        """Return the memory to reserve. An estimate or an old peak never exceeds the card's memory: alone on the card, the job may try."""
        memory = self.inventory.cards[number].memory_mb  # type: ignore[index]
        return need.memory_mb if memory is None or need.firm else min(need.memory_mb, memory)

    def _fits(self, need: Need, number: int) -> bool:
        left = self._memory[number]
        return left is None or self._claimed(need, number) <= left

    def _room(self, number: int) -> tuple[int, int]:
        card = self.inventory.cards[number]  # type: ignore[index]
        # Fewest jobs first, then most free memory.
        return self._slots[number] - card.slots, self._memory[number] or 0


# --------------------------------------------------------------------------------------------------------------------- inventory
def threads_here() -> int:
    """Return the number of CPU threads that this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


async def detect(proc: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[Card, ...]:
    """Return the cards of this machine, from `nvidia-smi` or else the driver's folder ``proc``, without loading a CUDA library."""
    if not proc.is_dir():  # no driver, so no nvidia-smi
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
        log.warning("nvidia-smi cannot be run (%s): the memory of the GPUs is unknown", error)
    else:
        try:
            output, _ = await asyncio.wait_for(process.communicate(), DETECT_S)
            cards = parse(output.decode(errors="replace"))
        except TimeoutError:
            log.warning("nvidia-smi did not answer within %.0f s: the memory of the GPUs is unknown", DETECT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if not cards:
        cards = [Card(str(number)) for number in range(sum(1 for _ in proc.iterdir()))]
    return visible(cards, os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse(text: str) -> list[Card]:
    """Parse the lines "UUID, MEGABYTES" of nvidia-smi."""
    cards = []
    for line in text.splitlines():
        uuid, _, memory = (part.strip() for part in line.partition(","))
        if uuid.startswith("GPU-"):
            cards.append(Card(uuid, int(memory) if memory.isdigit() else None))
    return cards


def visible(cards: Collection[Card], chosen: str | None) -> tuple[Card, ...]:
    """Return the cards that the daemon's own CUDA_VISIBLE_DEVICES (``chosen``) leaves visible, in its order; None: all."""
    if chosen is None:
        return tuple(cards)
    selected, detected = [], list(cards)
    for name in filter(None, (part.strip() for part in chosen.split(","))):
        if name.isdigit() and int(name) < len(detected):
            selected.append(detected[int(name)])
        elif name.startswith(("GPU-", "MIG-")):
            selected.append(next((card for card in detected if card.name.startswith(name)), Card(name)))
        else:  # like CUDA: cards after an unknown name are invisible
            break
    return tuple(selected)


async def inventory(cards: Any, slots: int, memory_mb: int, threads: int) -> Inventory:
    """Return the inventory that the settings ``[devices]`` describe; see `config.Devices`."""
    if cards == "auto":
        chosen = await detect()
    else:
        chosen = tuple(Card(str(name)) for name in cards)
        if chosen and not memory_mb:
            detected = {card.name: card for card in await detect()}
            numbered = list(detected.values())
            chosen = tuple(
                detected.get(card.name) or (numbered[int(card.name)] if card.name.isdigit() and int(card.name) < len(numbered) else card)
                for card in chosen
            )
    usable = tuple(Card(card.name, memory_mb or card.memory_mb, slots) for card in chosen)
    # That detection found none proves little (another maker's card, a container without nvidia-smi): the workers look for themselves.
    return Inventory(threads or threads_here(), usable if usable or cards != "auto" else None)


@dataclass
class Pool:
    """The inventory, and the places in use now, by job."""

    inventory: Inventory
    used: dict[str, Place] = field(default_factory=dict)

    def plan(self) -> Plan:
        """Start a round of placement."""
        return Plan(self.inventory, self.used.values())

    def environment(self, place: Place | None, device: str) -> dict[str, str]:
        """Return the environment that shows the worker its own card only, or none."""
        if self.inventory.cards is None:
            return {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        card = place.card if place is not None else None
        return {"CUDA_VISIBLE_DEVICES": self.inventory.cards[card].name if card is not None else ""}

    def refused(self, spec: Mapping[str, Any]) -> OffrlError | None:
        """Return why a train job can never run here, or None if it can."""
        try:
            check(need(spec, bool(self.inventory.cards)), self.inventory)
        except InvalidInput as error:
            return error
        return None
