"""The learner of notebooks and scripts: the engine's, which also writes policy files and the folder of a run, as a job does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from offrl.errors import InvalidInput
from offrld import engine, settings

Metrics = dict[str, dict[int, float]]


class Learner(engine.Learner):
    """`offrld.engine.Learner` with `export`, and files for `fit` and `fitter`. Make it with `offrld.train`, `build` or `load`."""

    def export(self, path: str | os.PathLike[str], *, seed: int | None = None) -> Path:
        """Write the policy file of a trained seed (ONNX, see ``docs/policy-file.md``); returns its path.

        Raises:
            InvalidInput: a name that does not end in ``.onnx``.
            CheckFailed: the exported policy differs from the network.
        """
        from offrld.export.learner import export_learner  # onnx and its exporter: not needed before the first export

        return export_learner(self, path, self._seed(seed))

    def fitter(
        self, steps: int | None = None, *, save_to: str | os.PathLike[str] | None = None, save_interval: int = 1, **options: Any
    ) -> Iterator[tuple[int, Metrics]]:
        """As the engine's, whose arguments ``options`` are, with files:

        Args:
            save_to: folder for ``config.json``, ``checkpoints/STEP.safetensors`` and ``seed-S/metrics/NAME.csv`` with TensorBoard's events.
            save_interval: epochs between two checkpoints; there is one of the end as well.
        """
        if save_to is not None:
            options["recorder"] = lambda per_epoch: _recorder(self, Path(save_to), per_epoch, save_interval)
        return super().fitter(steps, **options)


def _recorder(learner: Learner, path: Path, per_epoch: int, save_interval: int) -> Callable[[int, Metrics, bool], None]:
    """Writes the folder of one fit: a job's run folder without the job."""
    from offrld.worker.metrics import Metrics as Files
    from offrld.worker.runfolder import RunFolder, write_json

    if save_interval < 1:
        raise InvalidInput(f"save_interval takes a whole number from 1, got {save_interval!r}")
    path.mkdir(parents=True, exist_ok=True)
    run = RunFolder(path)
    files = Files(run, list(learner.seeds), per_epoch)
    files.resume(learner.step)
    write_json(run.config, {"algorithm": learner.algorithm.name, **settings.as_flat(learner.config)})

    def record(epoch: int, metrics: Metrics, last: bool) -> None:
        files.record(learner.step, metrics)
        if last or epoch % save_interval == 0:
            files.sync()
            learner.save(run.checkpoint(learner.step))

    return record
