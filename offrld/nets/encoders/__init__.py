"""Encoders: the trunks of all networks.

An encoder is a description, not a container: it has a name, creates initial parameters, and computes from a dict of parameters that the
caller passes. One description therefore serves online and target parameters, and one seed or many.
"""

from offrld.nets.encoders.mlp import Mlp
from offrld.nets.encoders.plugins import types
from offrld.nets.encoders.registry import Network, Observation, View, build
from offrld.nets.encoders.settings import ACTIVATIONS, Encoder
from offrld.nets.linear import Params

__all__ = ["ACTIVATIONS", "Encoder", "Mlp", "Network", "Observation", "Params", "View", "build", "types"]
