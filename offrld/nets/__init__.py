"""Networks as descriptions: encoders, policies, Q functions. A network computes from the parameters that it is given."""

from offrld.nets.encoders import ACTIVATIONS, Encoder, Mlp, Params
from offrld.nets.policies import CategoricalPolicy, DeterministicPolicy, Normal, NormalPolicy
from offrld.nets.q_functions import Critics, DiscreteCritics, ValueFunction

__all__ = [
    "ACTIVATIONS", "CategoricalPolicy", "Critics", "DeterministicPolicy", "DiscreteCritics", "Encoder", "Mlp", "Normal", "NormalPolicy",
    "Params", "ValueFunction",
]  # fmt: skip
