"""The engine: the form of an algorithm, and the learner that turns losses into updates."""

from offrld.engine.definition.algorithm import (
    ActionConfig,
    Algorithm,
    Batch,
    Config,
    Loss,
    LossResult,
    Noise,
    Observation,
    Rollout,
    Stage,
    State,
    Step,
    ValueConfig,
    Windows,
)
from offrld.engine.definition.optimizer import Optimizer
from offrld.engine.definition.run import Scalers
from offrld.engine.definition.space import Space
from offrld.engine.learner.data import Dataset
from offrld.engine.learner.learner import Learner
from offrld.engine.learner.loaded import Loaded
from offrld.engine.learner.policy_networks import PolicyModule
from offrld.engine.learner.sequence_policy import SequencePolicy
from offrld.engine.updates.checkpoint import CheckpointCorrupt
from offrld.preprocess.rewards import RewardScaler
from offrld.preprocess.scalers import ActionScaler, ObservationScaler, Scaler
from offrld.settings import setting

__all__ = [
    "ActionConfig", "ActionScaler", "Algorithm", "Batch", "CheckpointCorrupt", "Config", "Dataset", "Learner", "Loaded", "Loss",
    "LossResult", "Noise", "Observation", "ObservationScaler", "Optimizer", "PolicyModule", "RewardScaler", "Rollout", "Scaler",
    "Scalers", "SequencePolicy", "Space", "Stage", "State", "Step", "ValueConfig", "Windows", "setting",
]  # fmt: skip
