"""Collecting: behaviours that act in gymnasium environments, and the steps and episodes that come of it."""

from offrld.collect.batches import CollectedBatch, split_trajectories
from offrld.collect.behaviours import Behaviour, FunctionBehaviour, NoisyPoleBehaviour, RandomBehaviour
from offrld.collect.collector import Collector, collect
from offrld.collect.episodes import collect_episodes, schema_of
from offrld.collect.explorers import ConstantEpsilonGreedy, LinearDecayEpsilonGreedy, NormalNoise
from offrld.collect.trained_behaviours import LearnerBehaviour, ModelBehaviour, PolicyBehaviour, as_behaviour
from offrld.collect.workers import AsyncCollector, MultiAsyncCollector, MultiSyncCollector

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
