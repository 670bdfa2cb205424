"""The learner of notebooks and scripts: the engine's, which also writes policy files and run folders, as a job does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from offrl import outfile
from offrl.errors import InvalidInput
from offrld import engine, settings
from offrld.state.files import write_json
from offrld.state.metric_files import MetricFiles
from offrld.state.run_folder import RunFolder

Metrics = dict[str, dict[int, float]]


class Learner(engine.Learner):
    """`offrld.engine.Learner` with `export`, and files for `fit` and `fitter`. Make it with `offrld.train`, `build` or `load`."""

    def __repr__(self) -> str:
        return f"<Learner of {self.algorithm.name}, seeds {list(self.seeds)}, step {self.step}>"

    def export(self, path: str | os.PathLike[str], *, seed: int | None = None, force: bool = True) -> Path:
        """Write the policy of a trained seed as ONNX, or as TorchScript to a name in ``.pt`` (``docs/policy-file.md``); returns its path.

        Args:
            force: replace an existing file, as `save` does. False refuses one of other content, as ``offrl fetch`` does.

        Raises:
            InvalidInput: a name that ends in neither ``.onnx`` nor ``.pt``.
            Conflict: not ``force``, and a file of other content is there.
            CheckFailed: the exported policy differs from the network.
        """
        from offrld.export.learner import export_learner  # imports onnx, which only an export needs

        return export_learner(self, path, self.trainer.run.seed(seed), force=force)

    def save(self, path: str | os.PathLike[str], more: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint as the engine's `save` does. Raises `InvalidInput` or `DiskFull` if the file cannot be written."""
        with outfile.errors(path):
            super().save(path, more)

    def check_export(self) -> None:
        """Raise `CheckFailed` if the present policy cannot be exported as ONNX."""
        from offrld.export.learner import LearnerExporter

        LearnerExporter(self).check()

    def fitter(
        self, steps: int | None = None, *, save_to: str | os.PathLike[str] | None = None, save_interval: int = 1, **options: Any
    ) -> Iterator[tuple[int, Metrics]]:
        """Train as the engine's `fitter` does, with its arguments ``options``, and write files.

        Args:
            save_to: folder of ``config.json``, ``checkpoints/STEP.safetensors`` and ``seed-S/metrics/NAME.csv`` with TensorBoard's events.
            save_interval: epochs between two checkpoints; there is always one at the end.
        """
        if save_to is not None:
            options["recorder"] = lambda per_epoch: _recorder(self, Path(save_to), per_epoch, save_interval)
        return super().fitter(steps, **options)

    def fit_online(self, env: Any, store: Any = None, explorer: Any = None, **options: Any) -> list[tuple[int, Metrics]]:
        """Train online; every epoch's (number, metrics). For arguments and errors see `fitter_online`."""
        return list(self.fitter_online(env, store, explorer, **options))

    def fitter_online(
        self,
        env: Any,
        store: Any = None,
        explorer: Any = None,
        *,
        save_to: str | os.PathLike[str] | None = None,
        save_interval: int = 1,
        **options: Any,
    ) -> Iterator[tuple[int, Metrics]]:
        """Act in an environment and train on its steps, yielding (epoch, metrics) after each epoch. Networks, optimizers and the step
        continue, so that ``fit`` and then ``fit_online`` is fine-tuning.

        Args:
            env: a gymnasium id, an environment, or a function that makes one.
            store: receives the steps: an `EpisodeStore` or its path (created if it does not exist); None: a temporary one of 1,000,000
                transitions.
            explorer: of `offrld.collect`; None: the policy's own draws.
            steps: steps of the environment (default 1,000,000); ``steps_per_epoch``: 10,000.
            random_steps: number of uniform actions at the start.
            update_start, update_interval, updates: after step ``update_start``, make ``updates`` updates every ``update_interval`` steps.
                The first one needs more transitions in the store than a batch.
            eval_env, eval_episodes, eval_epsilon: environment in which the greedy policy is evaluated after each epoch, over 10 episodes,
                with uniform actions at this probability (0).
            offline, offline_share: a dataset, and the share of every batch that it supplies.
            limit, seed, max_frames_per_traj, step_timeout_s, sync_s: see `offrld.collect.Collector`.
            callback, epoch_callback: called with (learner, epoch, step) after each step, or each epoch.
            save_to, save_interval, logger, show_progress: see `fitter`.

        The metrics are the losses' means, ``rollout_return`` (mean over the episodes that ended), ``return_mean`` and ``return_std``
        of the evaluation, and the seconds spent.

        Raises:
            InvalidInput: an algorithm that cannot learn online, spaces that do not fit, a number out of range.
            EnvironmentFailed: the environment raised or hung; the store has all steps before.
            Diverged: the seed has.
        """
        from offrld.collect.online import fitter_online  # imports gymnasium, which only online training needs

        if save_to is not None:
            options["recorder"] = lambda per_epoch: _recorder(self, Path(save_to), per_epoch, save_interval)
        return fitter_online(self, env, store, explorer, **options)


def _recorder(learner: Learner, path: Path, per_epoch: int, save_interval: int) -> Callable[[int, Metrics, bool], None]:
    """Return the recorder of one fit, which writes a run folder as a job does."""
    if save_interval < 1:
        raise InvalidInput(f"save_interval takes a whole number from 1, got {save_interval!r}")
    path.mkdir(parents=True, exist_ok=True)
    run = RunFolder(path)
    files = MetricFiles(run, list(learner.seeds), per_epoch)
    files.resume(learner.step)
    write_json(run.config, {"algorithm": learner.algorithm.name, **settings.as_flat(learner.config)})

    def record(epoch: int, metrics: Metrics, last: bool) -> None:
        files.record(learner.step, metrics)
        if last or epoch % save_interval == 0:
            files.sync()
            learner.save(run.checkpoint(learner.step))

    return record
