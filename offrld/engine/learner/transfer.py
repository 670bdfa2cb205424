"""Transfer from another run: networks, their targets and the optimizers' state, matched by name and shape.

``policy`` means all networks except critic, q and value; ``critics`` means these three. A temperature belongs to the policy, and keeps its
initial value if the source has none. If both sides have exactly one network of a kind, the two match whatever their names: BC's ``policy``
becomes TD3+BC's ``actor``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.engine.definition.algorithm import Algorithm, by_name
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner.data import rebuild_scalers
from offrld.engine.learner.loaded import Loaded, Trained, seeds_of
from offrld.engine.learner.trainer import Trainer
from offrld.nets import Params
from offrld.preprocess.scalers import OBSERVATION_SCALERS

CRITICS = ("critic", "q", "value")
PARTS = ("all", "policy", "critics")
Part = Literal["all", "policy", "critics"]
Log = Callable[[str], None]


def copy_into(
    trainer: Trainer,
    source: Loaded | Trained | Iterable[Loaded | Trained],
    part: Part,
    log: Log,
    *,
    networks: bool = True,
    moments: bool = True,
    strict: bool = True,
) -> None:
    """Copy a part of another run into a trainer.

    Args:
        source: a learner or several loaded seeds, of which each seed takes the same seed or else the first; or one loaded seed for all.
        networks: copy parameters and target networks.
        moments: copy the state of the optimizers of these networks.
        strict: raise an error if an optimizer has no match; otherwise it starts from zero.

    Raises:
        InvalidInput: the source lacks a network, or a shape differs; the trainer is unchanged.
    """
    if part not in PARTS:
        raise InvalidInput(f"unknown transfer {part!r}", hint=f"use one of {', '.join(PARTS)}")
    loaded, state = seeds_of(source), trainer.state
    sources = [next((one for one in loaded if one.seed == seed), loaded[0]) for seed in trainer.run.seeds]
    names = _Target(trainer.run.algorithm, trainer.run.nets, state.params, log).matched(loaded[0], part)
    writes: list[tuple[Tensor, Tensor]] = []
    if networks:
        for kind, tensors in (("params", state.params), ("target", state.target)):
            writes += [pair for name, tensor in tensors.items() if (pair := _pair(kind, name, tensor, names, sources))]
    counts = _moments(trainer, sources, names, writes, log, strict=strict) if moments else {}
    with torch.no_grad():
        for mine, theirs in writes:
            mine.copy_(theirs)
        for key, count in counts.items():
            state.moments[key].counts.fill_(count)
            trainer.moves[key] = count


def reset_optimizers(trainer: Trainer) -> None:
    """Set moments and counts of every optimizer to zero; parameters stay."""
    for moments in trainer.state.moments.values():
        for values in moments.parts.values():
            for value in values.values():
                value.zero_()
        moments.counts.zero_()
    trainer.moves = dict.fromkeys(trainer.moves, 0)


def check_start(algorithm: Algorithm, config: Any, source: Loaded, part: str) -> None:
    """Raise `InvalidInput` if a learner of ``algorithm`` with the spaces of ``source`` cannot start from it."""
    kind = "discrete" if source.space.discrete else "continuous"
    if algorithm.actions not in ("both", kind):
        whose = f"{source.origin} ({source.algorithm.name})"
        raise InvalidInput(
            f"{algorithm.name} learns {algorithm.actions} actions, {whose} has {kind} ones",
            hint=f"continue with {source.algorithm.name}, the algorithm of that run",
        )
    nets, generator = algorithm.nets(config, source.space), torch.Generator().manual_seed(0)
    params = {name: value[None] for net in by_name(nets).values() for name, value in net.init(generator, torch.float32).items()}
    _Target(algorithm, nets, params, lambda text: None).matched(source, part)


@dataclass(frozen=True)
class _Target:
    """The networks that receive parameters; ``params`` have a leading seed axis."""

    algorithm: Algorithm
    nets: Any
    params: Params
    log: Log

    def matched(self, source: Loaded, part: str) -> dict[str, str]:
        """Return network of the part -> matching network of the source."""
        try:
            return self._match(source, part, self.log)
        except InvalidInput as error:
            error.hint = self._other_way(source, part) or error.hint
            raise

    def _other_way(self, source: Loaded, part: str) -> str:
        """Return a hint about parts of the source that match; "" if none does."""
        ways = []
        for other in ("policy", "critics"):
            with contextlib.suppress(InvalidInput):
                if other != part and self._match(source, other, lambda text: None):
                    ways.append(f"--transfer {other}")
        if source.algorithm.name != self.algorithm.name:
            ways.append(f"continue with {source.algorithm.name}, the algorithm of that run")
        return " or ".join(ways)

    def _match(self, source: Loaded, part: str, log: Log) -> dict[str, str]:
        """Match as `matched` does, but without hints about other parts in errors."""
        mine, theirs = ([name for name in by_name(nets) if _chosen(name, part)] for nets in (self.nets, source.nets))
        if not mine:
            raise InvalidInput(
                f"{self.algorithm.name} has no networks of its own for {part!r}", hint=f"its networks: {', '.join(by_name(self.nets))}"
            )
        names = {}
        for name in mine:
            alike = [other for other in theirs if (other in CRITICS) == (name in CRITICS)]
            own = [other for other in mine if (other in CRITICS) == (name in CRITICS) and not self._number(other)]
            if name in theirs:
                names[name] = name
            elif self._number(name) and len(mine) > 1:
                log(f"start: the number {name} keeps its initial value, because {source.origin} has none")
            elif len(alike) == len(own) == 1:
                names[name] = alike[0]
            else:
                raise InvalidInput(
                    f"{source.origin} ({source.algorithm.name}) has no network {name!r}, only {', '.join(by_name(source.nets))}",
                    hint="start from a job of the same algorithm",
                )
        params = source.params
        for name, other in names.items():
            shapes, wanted = _shapes(other, params), _shapes(name, self.params, skip=1)
            if shapes != wanted:
                differ = next(key for key in sorted({*shapes, *wanted}) if shapes.get(key) != wanted.get(key))
                has, needs = (list(one[differ]) if differ in one else "absent" for one in (shapes, wanted))
                raise InvalidInput(
                    f"network {name!r} does not fit: {other}.{differ} is {has} in {source.origin}, {needs} here",
                    hint="use the same encoder settings, observations and actions",
                )
        if left := [name for name in theirs if name not in names.values()]:
            log(f"start: {self.algorithm.name} does not use {', '.join(left)} of {source.origin}")
        return names

    def _number(self, network: str) -> bool:
        """Return whether a network is a single number, like a temperature."""
        return all(value[0].numel() == 1 for name, value in self.params.items() if name.split(".")[0] == network)


def _pair(kind: str, name: str, mine: Tensor, names: dict[str, str], sources: list[Loaded]) -> tuple[Tensor, Tensor] | None:
    """Return a tensor of the trainer and the one to copy into it."""
    network, _, rest = name.partition(".")
    if network not in names:
        return None
    other = f"{names[network]}.{rest}"
    # If the source has no target network for this one, use its parameters: a target starts as an exact copy.
    theirs = [source.tensors.get(f"{kind}/{other}", source.tensors[f"params/{other}"]) for source in sources]
    return mine, torch.stack(theirs).to(mine)


def _moments(
    trainer: Trainer, sources: list[Loaded], names: dict[str, str], writes: list[tuple[Tensor, Tensor]], log: Log, *, strict: bool
) -> dict[str, int]:
    """Add the optimizers' tensors to ``writes``; return the step counts of the matching optimizers."""
    counts, missing = {}, []
    for key, moments in trainer.state.moments.items():
        networks = {name.split(".")[0] for values in moments.parts.values() for name in values}
        if not networks or not networks <= names.keys():
            continue
        theirs = sources[0].tensors
        pairs = {
            (part, name): f"optimizer/{key}/{part}/{names[name.split('.')[0]]}.{name.partition('.')[2]}"
            for part, values in moments.parts.items()
            for name in values
        }
        if f"optimizer/{key}/count" not in theirs or any(path not in theirs for path in pairs.values()):
            missing.append(key)
            continue
        for (part, name), path in pairs.items():
            mine = moments.parts[part][name]
            writes.append((mine, torch.stack([source.tensors[path] for source in sources]).to(mine)))
        counts[key] = int(theirs[f"optimizer/{key}/count"])
    if missing and strict:
        raise InvalidInput(f"{sources[0].origin} has no optimizer state for {', '.join(missing)}", hint="use a run of the same algorithm")
    if missing:
        log(f"start: optimizers of {', '.join(missing)} start from zero, because {sources[0].origin} has no matching state")
    return counts


def scalers_like(
    source: Loaded, config: Any, space: Space, own: Scalers, *, dtype: torch.dtype, device: torch.device, log: Callable[[str], None]
) -> Scalers:
    """Return the source's scalers of observations and actions, so that networks see inputs as in training, and this run's reward scaler.

    Raises:
        InvalidInput: the observation fields differ, or the config does not name the source's scaler from another package.
    """
    if list(source.space.observation) != list(space.observation):
        mine, theirs = (", ".join(one.observation) for one in (space, source.space))
        raise InvalidInput(f"{source.origin} observes {theirs}, the dataset has {mine}")
    kinds = {one.observation_scaler.type for one in (source.config, config)}
    if len(kinds) > 1 and not kinds <= set(OBSERVATION_SCALERS):
        raise InvalidInput(f"observation scalers differ: {' and '.join(sorted(kinds))}", hint="name the same one with --set")
    if len(kinds) > 1:
        log(f"start: observations are scaled as in {source.origin} ({source.config.observation_scaler.type})")
    rebuilt = rebuild_scalers(source.config, source.space, source.scalers.tensors(), dtype, device)
    return Scalers(rebuilt.observation, rebuilt.action, own.reward)


def _chosen(network: str, part: str) -> bool:
    return part == "all" or (network in CRITICS) == (part == "critics")


def _shapes(network: str, params: dict[str, Tensor], skip: int = 0) -> dict[str, tuple[int, ...]]:
    return {name.partition(".")[2]: tuple(value.shape[skip:]) for name, value in params.items() if name.split(".")[0] == network}
