"""Collecting: behaviours that act in gymnasium environments, and the steps and episodes that come of it."""

from .batches import CollectedBatch, split_trajectories
from .behaviours import Behaviour, FunctionBehaviour, NoisyPoleBehaviour, RandomBehaviour
from .collector import Collector, collect
from .explorers import ConstantEpsilonGreedy, LinearDecayEpsilonGreedy, NormalNoise
from .policies import LearnerBehaviour, ModelBehaviour, PolicyBehaviour, as_behaviour
from .rollout import collect_episodes, schema_of
from .workers import AsyncCollector, MultiAsyncCollector, MultiSyncCollector

# The names that TorchRL's tutorials use.
SyncDataCollector, MultiSyncDataCollector, MultiaSyncDataCollector, aSyncDataCollector = (
    Collector, MultiSyncCollector, MultiAsyncCollector, AsyncCollector,
)  # fmt: skip

__all__ = [
    "AsyncCollector", "Behaviour", "CollectedBatch", "Collector", "ConstantEpsilonGreedy", "FunctionBehaviour", "LearnerBehaviour",
    "LinearDecayEpsilonGreedy", "ModelBehaviour", "MultiAsyncCollector", "MultiSyncCollector", "MultiSyncDataCollector",
    "MultiaSyncDataCollector", "NoisyPoleBehaviour", "NormalNoise", "PolicyBehaviour", "RandomBehaviour", "SyncDataCollector",
    "aSyncDataCollector", "as_behaviour", "collect", "collect_episodes", "schema_of", "split_trajectories",
]  # fmt: skip
