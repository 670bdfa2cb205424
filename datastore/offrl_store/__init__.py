"""offrl_store: a memory-mapped store of episodes and the samplers that read it. Needs NumPy only."""

from offrl_store import errors, rng
from offrl_store.check import check
from offrl_store.flat import MDPDataset, append_rows, to_arrays
from offrl_store.frames import FrameStacks, unstack
from offrl_store.mixing import mix
from offrl_store.prioritized import PrioritizedSampler
from offrl_store.returns import lambda_returns
from offrl_store.sampler import Batch, TransitionSampler
from offrl_store.schema import Episode, Field, Schema
from offrl_store.store import EpisodeList, EpisodeStore, Snapshot
from offrl_store.temporary import create_temporary, from_episodes, infer_schema
from offrl_store.transitions import Transition, TransitionList
from offrl_store.views import concat, copy, extend, train_test_split
from offrl_store.windows import WindowBatch, WindowSampler
from offrl_store.writer import Writer

__all__ = [
    "Batch", "Episode", "EpisodeList", "EpisodeStore", "Field", "FrameStacks", "MDPDataset", "PrioritizedSampler", "Schema", "Snapshot",
    "Transition", "TransitionList", "TransitionSampler", "WindowBatch", "WindowSampler", "Writer", "append_rows", "check", "concat",
    "copy", "create_temporary", "errors", "extend", "from_episodes", "infer_schema", "lambda_returns", "mix", "rng", "to_arrays",
    "train_test_split", "unstack",
]  # fmt: skip
