"""Training in chunks of many updates (`offrld.engine.updates.graph`): the choice of CUDA graphs, and what happens between chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offrl.errors import InvalidInput
from offrld.engine.updates.graph import Capture, Chunks, cuda_capture, length_for, moved_alike, restore
from offrld.engine.updates.means import Means
from offrld.nets.linear import products

if TYPE_CHECKING:
    from offrld.engine.learner.learner import Learner


class Replaying:
    """The part of a `Learner` that runs many updates together."""

    _chunks: Chunks | None

    def _choose_graph(self: Learner) -> None:
        """Take CUDA graphs where chunks can be captured and move the state as single updates do; else tell why not."""
        losses = self.runner
        try:
            self.use_chunks(cuda_capture(self.state.moving()))
            why = "" if self._chunks_agree() else "replayed updates differ from single ones"
        except Exception as error:  # whatever cannot be captured is a reason to do without, and is told
            why = f"capturing failed ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
        if why:
            self._chunks = None
            self._log(f"runner: {losses}, because {why}")
            return
        self.runner = "graph"
        self._log(f"runner: graph, {self._chunks.length} updates at a time, losses by {losses}")

    def use_chunks(self: Learner, capture: Capture, length: int | None = None) -> None:
        """Train in chunks from now on.

        Raises:
            InvalidInput: batches are not drawn on the device.
        """
        if self._supply.feed != "resident":
            raise InvalidInput(f"the feed is {self._supply.feed}, and a graph draws its batches on the device", hint="feed='resident'")
        feeds = {stage.name: self._single_feeds if stage.single_steps else self._feeds for stage in self._stages}
        whole = length_for(self._batches(0)[0]) // len(self._feeds) or 1
        self._chunks = Chunks(
            self._updater, self.state.schedules, feeds, self._device, capture=capture, length=whole if length is None else length
        )

    def _replay(self: Learner, end: int, *, at_once: bool = False) -> int:
        """Some updates together, up to ``end``, where they are worth a graph; gives how many."""
        with products(through_onednn=self.linear == "onednn"):
            done, metrics, moves = self._chunks.run(
                self._stage(self.step).name, self.step, self._free(self.step, end), self._taken, at_once=at_once
            )
        self._means.add(metrics)
        for key, count in moves.items():
            self._taken[key] += count
        self.step += done
        return done

    def _free(self: Learner, k: int, end: int) -> int:
        """How many updates from ``k`` on follow each other without another stage or the algorithm's hook in between."""
        stop, first = end, 0
        for stage in self._stages[:-1]:
            first += stage.updates or 0
            if stage.updates is not None and first > k:
                stop = min(stop, first)
                break
        if self.algorithm.between is not None:
            hook = self.algorithm.next_between
            stop = min(stop, k + 1 if hook is None else hook(self.config, k))
        return stop - k

    def _chunks_agree(self: Learner) -> bool:
        """Whether the first updates take the state to the same place in a chunk as one by one; moves nothing in the end."""
        state = self.state.moving()
        start, ends = [tensor.clone() for tensor in state], []
        step, taken, means = self.step, dict(self._taken), self._means
        updates = min(self._chunks.length, self._free(step, step + self._chunks.length))
        try:
            for chunked in (False, True):
                self._means = Means(self.seeds)
                if chunked:
                    self._replay(step + updates, at_once=True)
                else:
                    for _ in range(updates):
                        self._do(self._batches(self.step))
                ends.append([tensor.clone() for tensor in state])
                restore(state, start)
                self.step, self._taken = step, dict(taken)
        finally:
            restore(state, start)
            self.step, self._taken, self._means = step, taken, means
        return moved_alike(start, *ends)
