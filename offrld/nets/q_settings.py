"""The settings of a Q function: which kind it is, and what that kind takes. Each kind is one class of `offrld.nets.q_kinds`."""

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

    ``mean``: a number. ``qr``: quantiles at fixed fractions (Dabney et al. 2017, arXiv:1710.10044). ``iqn``: quantiles at random
    fractions, which are inputs (Dabney et al. 2018, arXiv:1806.06923). ``fqf``: quantiles at fractions that a second net proposes
    (Yang et al. 2019, arXiv:1911.02140). Installed packages may add further ones (see docs/extending.md).
    """

    type: str = setting(
        "mean", "what the Q function learns: the mean of the returns, or their quantiles", choices=q_plugins.types, probe="qr"
    )
    n_quantiles: int | None = setting(
        None,
        "quantiles in the loss (none: 32 for qr and fqf, 64 for iqn)",
        unit="quantiles",
        low=1,
        high=10_000,
        only=("qr", "iqn", "fqf"),
        probe=8,
    )
    n_greedy_quantiles: int = setting(32, "evenly spaced quantiles to act by", unit="quantiles", low=2, high=10_000, only=("iqn",))
    embed_size: int = setting(64, "cosines that a fraction is embedded in", low=1, high=10_000, only=("iqn", "fqf"))
    entropy_coeff: float = setting(0.0, "weight of the entropy of the proposed fractions", low=0.0, only=("fqf",), probe=0.5)
    share_encoder: bool = setting(False, "one encoder for all members; its gradient is divided by their number")
    options: dict[str, Any] = setting({}, "further settings of a Q function of an installed package", only=q_plugins.plugins)

    def __post_init__(self) -> None:
        if self.options and self.type in q_plugins.BUILT_IN:
            raise InvalidInput(f"Q function {self.type!r} takes no options, got {self.options}", hint="leave options out")

    @property
    def quantiles(self) -> int:
        """The number of quantiles, its default resolved; of a package's type, the numbers that represent a value."""
        if self.type not in DEFAULT_QUANTILES:
            return q_plugins.size_of(self.type, self.options)
        return DEFAULT_QUANTILES[self.type] if self.type == "mean" or self.n_quantiles is None else self.n_quantiles
