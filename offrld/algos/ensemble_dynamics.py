"""EnsembleDynamics: probabilistic models of the change of a vector observation and of the reward.

    (s' - s, r) ~ N(mu_m(s, a), exp(l_m(s, a))^2),    m = 1 .. n_ensembles
    L = sum_m mean_B b_m (0.5 sum_j (mu_j - x_j)^2 exp(-2 l_j) + sum_j l_j + 0.01 sum_j (most_j - least_j)),    x = (s' - s, r)

b_m are fair coins per member and transition (a bootstrap). l is softly clamped between `least` and `most`, which are learned. The encoder's
linear layers and the head of the mean are spectrally normalised. Actions are continuous, or discrete as one-hot vectors. The result is not
a policy: MOPO and COMBO use it (`dynamics=JOB`). Metrics: `dynamics_loss`, `dynamics_error` (mean squared error of the means, scaled
units).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offrld.engine import Algorithm, Step
from offrld.losses import dynamics
from offrld.nets import Params


def schedule(config: dynamics.DynamicsConfig) -> tuple[Step, ...]:
    return (Step("dynamics", dynamics.loss, ("dynamics",), config.optimizer, config.learning_rate),)


def act(params: Params, config: Any, nets: dynamics.Nets, observation: Any) -> Tensor:
    raise TypeError("a model of the environment does not act")


ALGORITHM = Algorithm(
    name="ensemble_dynamics",
    summary="models of the environment, for MOPO and COMBO; not a policy",
    paper="Chua et al. 2018, Deep Reinforcement Learning in a Handful of Trials using Probabilistic Dynamics Models (arXiv:1805.12114)",
    actions="both",
    config=dynamics.DynamicsConfig(),
    networks=lambda config, space: dynamics.networks(config, space, config.encoder),
    noise=dynamics.noise,
    schedule=schedule,
    act=act,
    acts=False,
    presets={"paper": {}, "d3rlpy": {}},
)
