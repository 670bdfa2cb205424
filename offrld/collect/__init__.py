"""Collecting: behaviours that act in gymnasium environments, and the steps and episodes that come of it."""

from .batches import CollectedBatch, split_trajectories
from .behaviours import Behaviour, FunctionBehaviour, NoisyPoleBehaviour, RandomBehaviour
from .collector import Collector, collect
from .explorers import ConstantEpsilonGreedy, LinearDecayEpsilonGreedy, NormalNoise
from .policies import LearnerBehaviour, ModelBehaviour, PolicyBehaviour, as_behaviour
from .rollout import collect_episodes, schema_of

__all__ = [
    "Behaviour", "CollectedBatch", "Collector", "ConstantEpsilonGreedy", "FunctionBehaviour", "LearnerBehaviour",
    "LinearDecayEpsilonGreedy", "ModelBehaviour", "NoisyPoleBehaviour", "NormalNoise", "PolicyBehaviour", "RandomBehaviour", "as_behaviour",
    "collect", "collect_episodes", "schema_of", "split_trajectories",
]  # fmt: skip
