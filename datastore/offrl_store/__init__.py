"""offrl_store: a memory-mapped store of episodes and the samplers that read it. Needs NumPy only."""

from . import errors, rng
from .check import check
from .mixing import mix
from .prioritized import PrioritizedSampler
from .returns import lambda_returns
from .sampler import Batch, TransitionSampler
from .schema import Episode, Field, Schema
from .store import EpisodeList, EpisodeStore, Snapshot
from .views import MDPDataset, concat, copy, train_test_split
from .windows import WindowBatch, WindowSampler
from .writer import Writer

__all__ = [
    "Batch", "Episode", "EpisodeList", "EpisodeStore", "Field", "MDPDataset", "PrioritizedSampler", "Schema", "Snapshot",
    "TransitionSampler", "WindowBatch", "WindowSampler", "Writer", "check", "concat", "copy", "errors", "lambda_returns", "mix", "rng",
    "train_test_split",
]  # fmt: skip
