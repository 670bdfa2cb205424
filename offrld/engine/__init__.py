"""The engine: the form of an algorithm, and the learner that turns losses into updates."""

from offrld.engine.algorithm import Adam, Algorithm, Batch, Config, Loss, Noise, Stage, State, Step, ValueConfig
from offrld.engine.checkpoint import CheckpointCorrupt
from offrld.engine.learner import Learner
from offrld.engine.policy import PolicyModule
from offrld.engine.space import Space
from offrld.preprocess.rewards import RewardScaler
from offrld.preprocess.scalers import ActionScaler, ObservationScaler
from offrld.settings import setting

__all__ = [
    "ActionScaler", "Adam", "Algorithm", "Batch", "CheckpointCorrupt", "Config", "Learner", "Loss", "Noise",
    "ObservationScaler", "PolicyModule", "RewardScaler", "Space", "Stage", "State", "Step", "ValueConfig", "setting",
]  # fmt: skip
