"""The engine: the form of an algorithm, and the learner that turns losses into updates."""

from offrld.engine.algorithm import (
    ActionConfig,
    Algorithm,
    Batch,
    Config,
    Loss,
    Noise,
    Observation,
    Rollout,
    Stage,
    State,
    Step,
    ValueConfig,
    Windows,
)
from offrld.engine.checkpoint import CheckpointCorrupt
from offrld.engine.data import Dataset
from offrld.engine.feed import Scalers
from offrld.engine.learner import Learner
from offrld.engine.loaded import Loaded
from offrld.engine.optimizer import Optimizer
from offrld.engine.policy import PolicyModule
from offrld.engine.sequence_policy import SequencePolicy
from offrld.engine.space import Space
from offrld.preprocess.rewards import RewardScaler
from offrld.preprocess.scalers import ActionScaler, ObservationScaler, Scaler
from offrld.settings import setting

__all__ = [
    "ActionConfig", "ActionScaler", "Algorithm", "Batch", "CheckpointCorrupt", "Config", "Dataset", "Learner", "Loaded", "Loss", "Noise",
    "Observation",
    "ObservationScaler", "Optimizer", "PolicyModule", "RewardScaler", "Rollout", "Scaler", "Scalers", "SequencePolicy", "Space", "Stage",
    "State", "Step", "ValueConfig", "Windows", "setting",
]  # fmt: skip
