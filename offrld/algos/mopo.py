"""MOPO: SAC on a mixture of real and imagined transitions; imagined rewards are penalised where the model is uncertain.

    r <- r - lam v      of imagined transitions (see `ensemble_dynamics`, and `losses.model_based` for the rollouts)
    v = max_m sum_j sigma_mj^2    variance_type max;    sum_j var_m x_mj    data, of the members' samples x = (s' - s, r)

The dynamics are trained first, for `dynamics_steps` updates, or come from another job (`dynamics=JOB`). Then the Q functions move at every
update; the policy, the temperature (with a fresh sample) and the target every `update_actor_interval` updates. The losses are SAC's (see
`sac`). A fraction `real_ratio` of each batch is real, the rest imagined. The penalty is the sum of variances, as in d3rlpy; the paper takes
the largest Frobenius norm of the members' covariances. Vector observations. Metrics: `dynamics_loss`, `dynamics_error`, `critic_loss`,
`actor_loss`, `temp_loss`, `temp`, `entropy`, `q_mean`.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import Algorithm, Stage, Step, setting
from offrld.losses import model_based, sac


@dataclass(frozen=True)
class Config(model_based.ModelBasedConfig):
    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    real_ratio: float = setting(0.05, "fraction of real transitions in a batch", low=0.0, high=1.0, probe=0.5)
    lam: float = setting(1.0, "weight of the model's variance subtracted from the reward", low=0.0)
    variance_type: str = setting(
        "max",
        "the model's variance: max, the largest predicted by a member; data, the variance of the members' samples",
        choices=("max", "data"),
    )


def stages(config: Config) -> tuple[Stage, ...]:
    return model_based.stages(config, model_based.on_mixture(sac.critic_loss))


def schedule(config: Config) -> tuple[Step, ...]:
    return stages(config)[-1].schedule


ALGORITHM = Algorithm(
    name="mopo",
    summary="SAC on imagined transitions, penalised where the model is uncertain",
    paper="Yu et al. 2020, MOPO: Model-based Offline Policy Optimization (arXiv:2005.13239)",
    actions="continuous",
    config=Config(),
    networks=model_based.networks,
    noise=model_based.noise,
    carry=model_based.carry,
    schedule=schedule,
    stages=stages,
    between=lambda learner, k: model_based.between(learner, k, learner.config.lam, learner.config.variance_type),
    next_between=model_based.next_between,
    inputs={"dynamics": model_based.DYNAMICS},
    act=sac.act,
    sample=sac.sample,
    value=sac.value,
    targets=("critic",),
    presets={"paper": {}, "d3rlpy": {}},
)
