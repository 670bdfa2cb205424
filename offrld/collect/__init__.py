"""Collecting: behaviours that act in gymnasium environments, and the episodes that come of it."""

from .behaviours import Behaviour, NoisyPoleBehaviour, RandomBehaviour
from .rollout import collect_episodes, make_environment, schema_of

__all__ = ["Behaviour", "NoisyPoleBehaviour", "RandomBehaviour", "collect_episodes", "make_environment", "schema_of"]
