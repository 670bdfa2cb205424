"""BC: behaviour cloning of continuous actions by regression.

    L = mean((pi(s) - a)^2)                      deterministic
    L = mean((clip(N(tanh mu, sigma)) - a)^2)    stochastic: the squared error of one reparametrised sample
    L = -mean(log N(a; tanh mu, sigma))          likelihood: the negative log density of the data's actions under the same policy

The greedy action is tanh(mu). Metric: `loss`.
"""

from __future__ import annotations

from dataclasses import dataclass

from offrld.engine import ActionConfig, Algorithm, Batch, LossResult, Noise, Optimizer, Space, State, Step, setting
from offrld.engine import Config as BaseConfig
from offrld.nets import DeterministicPolicy, Encoder, NormalPolicy, Params


@dataclass(frozen=True)
class Config(ActionConfig, BaseConfig):
    batch_size: int = setting(100, "transitions per update", unit="transitions", low=1, high=1_000_000)
    learning_rate: float = setting(1e-3, "learning rate", low=0.0, exclusive_low=True)
    policy_type: str = setting("deterministic", "form of the policy and of its loss", choices=("deterministic", "stochastic", "likelihood"))
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()


@dataclass(frozen=True)
class Nets:
    policy: DeterministicPolicy | NormalPolicy


def networks(config: Config, space: Space) -> Nets:
    sizes = ("policy", space.view, space.action_size, config.encoder)
    if config.policy_type == "deterministic":
        return Nets(policy=DeterministicPolicy(*sizes))
    return Nets(policy=NormalPolicy(*sizes, log_std_range=(-4.0, 15.0), free_std=False))


def noise(config: Config, space: Space) -> dict[str, Noise]:
    return {"sample": Noise((config.batch_size, space.action_size))} if config.policy_type == "stochastic" else {}


def loss(params: Params, config: Config, nets: Nets, state: State, batch: Batch) -> LossResult:
    if isinstance(nets.policy, DeterministicPolicy):
        action = nets.policy(params, batch.observation)  # [B, A]
    elif config.policy_type == "likelihood":
        value = -batch.mean(nets.policy.distribution(params, batch.observation).log_prob(batch.action))
        return value, {"loss": value}
    else:
        action = nets.policy.distribution(params, batch.observation).sample(batch.noise["sample"]).clamp(-1.0, 1.0)
    value = batch.mean((action - batch.action) ** 2)
    return value, {"loss": value}


def schedule(config: Config) -> tuple[Step, ...]:
    return (Step("policy", loss, ("policy",), config.optimizer, config.learning_rate),)


ALGORITHM = Algorithm(
    name="bc",
    summary="behaviour cloning: imitates the data's continuous actions",
    paper="Pomerleau 1991, Efficient Training of Artificial Neural Networks for Autonomous Navigation",
    actions="continuous",
    config=Config(),
    networks=networks,
    noise=noise,
    schedule=schedule,
    act=lambda params, config, nets, observation: nets.policy(params, observation),
    presets={"paper": {}, "d3rlpy": {}},
)
