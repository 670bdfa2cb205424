"""The settings of a Q function: its kind and that kind's parameters. Each kind is a class in `offrld.nets.q_kinds`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offrl.errors import InvalidInput
from offrld.nets import q_plugins
from offrld.settings import setting

DEFAULT_QUANTILES = {"mean": 1, "qr": 32, "iqn": 64, "fqf": 32}


@dataclass(frozen=True)
class QFunction:
    """How a Q function represents values.

    ``mean``: one number. ``qr``: quantiles at fixed fractions (Dabney et al. 2017, arXiv:1710.10044). ``iqn``: quantiles at random
    fractions, which are inputs (Dabney et al. 2018, arXiv:1806.06923). ``fqf``: quantiles at fractions that a second network proposes
    (Yang et al. 2019, arXiv:1911.02140). Installed packages can add more (see docs/extending.md).
    """

    type: str = setting(
        "mean", "what the Q function learns: the mean of the returns, or their quantiles", choices=q_plugins.types, probe="qr"
    )
    n_quantiles: int | None = setting(
        None,
        "number of quantiles in the loss (none: 32 for qr and fqf, 64 for iqn)",
        unit="quantiles",
        low=1,
        high=10_000,
        only=("qr", "iqn", "fqf"),
        probe=8,
    )
    n_greedy_quantiles: int = setting(
        32, "number of evenly spaced quantiles for acting", unit="quantiles", low=2, high=10_000, only=("iqn",)
    )
    embed_size: int = setting(64, "number of cosines in the embedding of a fraction", low=1, high=10_000, only=("iqn", "fqf"))
    entropy_coeff: float = setting(0.0, "weight of the entropy of the proposed fractions", low=0.0, only=("fqf",), probe=0.5)
    share_encoder: bool = setting(False, "share one encoder among all members; its gradient is divided by their number")
    options: dict[str, Any] = setting({}, "settings for a Q function from another package", only=q_plugins.plugins)

    def __post_init__(self) -> None:
        if self.options and self.type in q_plugins.BUILT_IN:
            raise InvalidInput(f"Q function {self.type!r} has no options, got {self.options}", hint="leave options out")

    @property
    def quantiles(self) -> int:
        """The number of quantiles, with its default resolved; for a package's type, how many numbers represent a value."""
        if self.type not in DEFAULT_QUANTILES:
            return q_plugins.size_of(self.type, self.options)
        return DEFAULT_QUANTILES[self.type] if self.type == "mean" or self.n_quantiles is None else self.n_quantiles
