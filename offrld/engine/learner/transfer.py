"""Taking over what another run has learned: networks, their targets and the optimisers' state, matched by name and shape.

``policy`` stands for all networks but critic, q and value, ``critics`` for these three; a temperature belongs to the policy, and begins
anew where there is none. Where each side has one network of its kind they are matched whatever they are called: the ``policy`` of BC
becomes the ``actor`` of TD3+BC.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from offrl.errors import InvalidInput
from offrld.engine.batches.feed import Scalers
from offrld.engine.definition.algorithm import by_name
from offrld.engine.learner.data import rebuild_scalers
from offrld.engine.learner.loaded import Loaded
from offrld.preprocess.scalers import OBSERVATION_SCALERS

if TYPE_CHECKING:
    from offrld.engine.definition.space import Space
    from offrld.engine.learner.learner import Learner
    from offrld.engine.updates.train_state import TrainState

CRITICS = ("critic", "q", "value")
PARTS = ("all", "policy", "critics")
Part = Literal["all", "policy", "critics"]
Start = Loaded | Sequence[Loaded]


class Transfer:
    """The part of `Learner` that takes over from others."""

    algorithm: Any
    nets: Any
    seeds: tuple[int, ...]
    state: TrainState
    _taken: dict[str, int]
    _log: Callable[[str], None]

    def copy_policy_from(self, other: Learner | Loaded) -> None:
        """Take over the policy's networks, with their target copies, from a learner or a loaded seed.

        A learner gives each seed its own where it trained the same one, and its first otherwise; a loaded seed goes to all.

        Raises:
            InvalidInput: a network that is missing there or has other shapes; nothing is changed then.
        """
        self._take(other, "policy", networks=True, moments=False)

    def copy_policy_optim_from(self, other: Learner | Loaded) -> None:
        """Take over the state of the optimisers that move the policy's networks; as `copy_policy_from`."""
        self._take(other, "policy", networks=False, moments=True)

    def copy_q_function_from(self, other: Learner | Loaded) -> None:
        """Take over critic, q and value networks, with their target copies; as `copy_policy_from`."""
        self._take(other, "critics", networks=True, moments=False)

    def copy_q_function_optim_from(self, other: Learner | Loaded) -> None:
        """Take over the state of the optimisers that move critic, q and value networks; as `copy_policy_from`."""
        self._take(other, "critics", networks=False, moments=True)

    def reset_optimizer_states(self) -> None:
        """Let every optimiser begin anew: moments and counts of zero. Parameters stay."""
        for moments in self.state.moments.values():
            for values in moments.parts.values():
                for value in values.values():
                    value.zero_()
            moments.counts.zero_()
        self._taken = dict.fromkeys(self._taken, 0)

    def start_from(self, start: Start, part: Part = "all", *, fresh_optimizer: bool = False) -> None:
        """Take over parameters, targets and (unless ``fresh_optimizer``) optimisers' state; optimisers that do not match begin anew.

        Args:
            start: one loaded seed for all, or several, of which each seed takes its own, or else the first.

        Raises:
            InvalidInput: a network that is missing there or has other shapes; nothing is changed then.
        """
        self._take(start, part, networks=True, moments=not fresh_optimizer, strict=False)

    # ------------------------------------------------------------------------------------------------------------- plumbing
    def _take(self, other: Any, part: str, *, networks: bool, moments: bool, strict: bool = True) -> None:
        if part not in PARTS:
            raise InvalidInput(f"transfer {part!r} is unknown", hint=f"one of {', '.join(PARTS)}")
        given = loaded_of(other)
        sources = [next((each for each in given if each.seed == seed), given[0]) for seed in self.seeds]
        names = self._matched(given[0], part)
        writes: list[tuple[Tensor, Tensor]] = []
        if networks:
            for kind, mine in (("params", self.state.params), ("target", self.state.target)):
                writes += [pair for name, tensor in mine.items() if (pair := self._pair(kind, name, tensor, names, sources))]
        counts = self._moments(sources, names, writes, strict=strict) if moments else {}
        with torch.no_grad():
            for mine, theirs in writes:
                mine.copy_(theirs)
            for key, count in counts.items():
                self.state.moments[key].counts.fill_(count)
                self._taken[key] = count

    def _matched(self, source: Loaded, part: str) -> dict[str, str]:
        """This learner's networks of the part -> those of the source."""
        try:
            return self._fitting(source, part)
        except InvalidInput as error:
            error.hint = self._other_way(source, part) or error.hint
            raise

    def _other_way(self, source: Loaded, part: str) -> str:
        """What of the source can be taken, "" where nothing of it can."""
        ways = []
        for other in ("policy", "critics"):
            with contextlib.suppress(InvalidInput):
                if other != part and self._fitting(source, other, log=lambda text: None):
                    ways.append(f"--transfer {other}")
        if source.algorithm.name != self.algorithm.name:
            ways.append(f"train on with {source.algorithm.name}, the algorithm of that run")
        return " or ".join(ways)

    def _fitting(self, source: Loaded, part: str, *, log: Callable[[str], None] | None = None) -> dict[str, str]:
        """`_matched` without a word about other parts."""
        log = log or self._log
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
                log(f"start: {name}, a single number, begins anew: {source.origin} has none")
            elif len(alike) == len(own) == 1:
                names[name] = alike[0]
            else:
                raise InvalidInput(
                    f"{source.origin} ({source.algorithm.name}) has no network {name!r}, only {', '.join(by_name(source.nets))}",
                    hint="start from a job of the same algorithm",
                )
        params = source.params
        for name, other in names.items():
            shapes, wanted = _shapes(other, params), _shapes(name, self.state.params, skip=1)
            if shapes != wanted:
                differ = next(key for key in sorted({*shapes, *wanted}) if shapes.get(key) != wanted.get(key))
                has, needs = (list(each[differ]) if differ in each else "absent" for each in (shapes, wanted))
                raise InvalidInput(
                    f"network {name!r} does not fit: {other}.{differ} is {has} in {source.origin}, {needs} here",
                    hint="the same encoder settings, observations and actions are needed",
                )
        if left := [name for name in theirs if name not in names.values()]:
            log(f"start: {', '.join(left)} of {source.origin} are not used by {self.algorithm.name}")
        return names

    def _number(self, network: str) -> bool:
        """Whether a network is a single number, like a temperature."""
        return all(value[0].numel() == 1 for name, value in self.state.params.items() if name.split(".")[0] == network)

    def _pair(self, kind: str, name: str, mine: Tensor, names: dict[str, str], sources: list[Loaded]) -> tuple[Tensor, Tensor] | None:
        network, _, rest = name.partition(".")
        if network not in names:
            return None
        other = f"{names[network]}.{rest}"
        # A run without target copies of this network gives its parameters: a target starts as an exact copy.
        found = [each.tensors.get(f"{kind}/{other}", each.tensors[f"params/{other}"]) for each in sources]
        return mine, torch.stack(found).to(mine)

    def _moments(
        self, sources: list[Loaded], names: dict[str, str], writes: list[tuple[Tensor, Tensor]], *, strict: bool
    ) -> dict[str, int]:
        """Add the optimisers' tensors to ``writes``; the counts of those that match."""
        counts, missing = {}, []
        for key, moments in self.state.moments.items():
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
            writes += [
                (moments.parts[part][name], torch.stack([each.tensors[path] for each in sources]).to(moments.parts[part][name]))
                for (part, name), path in pairs.items()
            ]
            counts[key] = int(theirs[f"optimizer/{key}/count"])
        if missing and strict:
            raise InvalidInput(f"{sources[0].origin} has no optimiser state for {', '.join(missing)}", hint="the same algorithm has it")
        if missing:
            self._log(f"start: optimisers of {', '.join(missing)} begin anew, {sources[0].origin} has none like them")
        return counts


class _Candidate(Transfer):
    """Networks that are made to be compared with those of a run."""

    def __init__(self, algorithm: Any, config: Any, space: Space) -> None:
        self.algorithm, self.nets = algorithm, algorithm.nets(config, space)
        generator = torch.Generator().manual_seed(0)
        params = {name: value for network in by_name(self.nets).values() for name, value in network.init(generator, torch.float32).items()}
        self.state = SimpleNamespace(params={name: value[None] for name, value in params.items()})
        self._log = lambda text: None


def check_start(algorithm: Any, config: Any, source: Loaded, part: str) -> None:
    """`InvalidInput` where a learner of ``algorithm`` for the observations and actions of ``source`` cannot start from it."""
    kind = "discrete" if source.space.discrete else "continuous"
    if algorithm.actions not in ("both", kind):
        whose = f"{source.origin} ({source.algorithm.name})"
        raise InvalidInput(
            f"{algorithm.name} learns {algorithm.actions} actions, {whose} has {kind} ones",
            hint=f"train on with {source.algorithm.name}, the algorithm of that run",
        )
    _Candidate(algorithm, config, source.space)._matched(source, part)


def loaded_of(given: Learner | Loaded | Sequence[Loaded]) -> list[Loaded]:
    """Whatever another run may be given as, as its seeds."""
    if isinstance(given, Loaded):
        return [given]
    if not isinstance(given, Sequence):
        return [Loaded.of(given, seed) for seed in given.seeds]
    return [each for part in given for each in loaded_of(part)] if not all(isinstance(each, Loaded) for each in given) else list(given)


def scalers_like(
    source: Loaded, config: Any, space: Space, own: Scalers, *, dtype: torch.dtype, device: torch.device, log: Callable[[str], None]
) -> Scalers:
    """The source's scalers of observations and actions with this run's own of rewards: networks go on seeing what they were trained on.

    Raises:
        InvalidInput: other observation fields, or a scaler of another package that the config does not name.
    """
    if list(source.space.observation) != list(space.observation):
        mine, theirs = (", ".join(each.observation) for each in (space, source.space))
        raise InvalidInput(f"{source.origin} observes {theirs}, the dataset has {mine}")
    kinds = {each.observation_scaler.type for each in (source.config, config)}
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
