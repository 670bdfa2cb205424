"""offrl_store: a memory-mapped store of episodes and the samplers that read it. Needs NumPy only."""

from . import errors, rng
from .check import check
from .flat import MDPDataset, append_rows, to_arrays
from .frames import FrameStacks, unstack
from .making import create_temporary, from_episodes, infer_schema
from .mixing import mix
from .prioritized import PrioritizedSampler
from .returns import lambda_returns
from .sampler import Batch, TransitionSampler
from .schema import Episode, Field, Schema
from .store import EpisodeList, EpisodeStore, Snapshot
from .transitions import Transition, TransitionList
from .views import concat, copy, extend, train_test_split
from .windows import WindowBatch, WindowSampler
from .writer import Writer

__all__ = [
    "Batch", "Episode", "EpisodeList", "EpisodeStore", "Field", "FrameStacks", "MDPDataset", "PrioritizedSampler", "Schema", "Snapshot",
    "Transition", "TransitionList", "TransitionSampler", "WindowBatch", "WindowSampler", "Writer", "append_rows", "check", "concat",
    "copy", "create_temporary", "errors", "extend", "from_episodes", "infer_schema", "lambda_returns", "mix", "rng", "to_arrays",
    "train_test_split", "unstack",
]  # fmt: skip
