"""Networks as descriptions: encoders, policies, Q functions. A network holds no parameters; callers pass them in."""

from offrld.nets.actor_critic import ActorCritic
from offrld.nets.context import CONTEXT, Context, context_of, is_buffer, remember
from offrld.nets.distributions import Normal, SquashedNormal
from offrld.nets.encoders import ACTIVATIONS, Encoder, Network, Observation, Params, View, build
from offrld.nets.policies import CategoricalPolicy, DeterministicPolicy, NormalPolicy, ResidualPolicy, SquashedNormalPolicy
from offrld.nets.q_functions import Critics, DiscreteCritics, QFunction, ValueFunction
from offrld.nets.scalars import PositiveScalar, Zero
from offrld.nets.transformer import SequenceModel, Transformer
from offrld.nets.vae import ConditionalVAE
from offrld.nets.values import Values, taken

__all__ = [
    "ACTIVATIONS", "CONTEXT", "ActorCritic", "CategoricalPolicy", "ConditionalVAE", "Context", "Critics", "DeterministicPolicy",
    "DiscreteCritics", "Encoder", "Network", "Normal", "NormalPolicy", "Observation", "Params", "PositiveScalar", "QFunction",
    "ResidualPolicy", "SequenceModel", "SquashedNormal", "SquashedNormalPolicy", "Transformer", "ValueFunction", "Values", "View", "Zero",
    "build", "context_of", "is_buffer", "remember", "taken",
]  # fmt: skip
