"""offrl_store: a memory-mapped store of episodes and the samplers that read it. Needs NumPy only."""

from . import errors, rng
from .check import check
from .sampler import Batch, TransitionSampler
from .schema import Episode, Field, Schema
from .store import EpisodeStore, Snapshot
from .writer import Writer

__all__ = ["Batch", "Episode", "EpisodeStore", "Field", "Schema", "Snapshot", "TransitionSampler", "Writer", "check", "errors", "rng"]
