"""Preprocessing: scalers of observations, actions and rewards."""

from offrld.preprocess.rewards import Clip, RewardScaler, fit_reward, needs_column, reward_column
from offrld.preprocess.scalers import ActionScaler, Affine, ObservationScaler, Own, Scaler, fit_action, fit_observation, observation_between

__all__ = [
    "ActionScaler", "Affine", "Clip", "ObservationScaler", "Own", "RewardScaler", "Scaler", "fit_action", "fit_observation", "fit_reward",
    "needs_column", "observation_between", "reward_column",
]  # fmt: skip
