"""Options that every format takes: the layout of images and the action space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from offrl_store.errors import InvalidInput
from offrld.importers.spaces import ActionSpace, Box, box, choices

OPTIONS = {
    "channels": "last: turn images [H, W, C] into [C, H, W] and grey ones [H, W] into [1, H, W]; first: leave them as they are",
    "action_low": "lower bound of the actions: one number, or a list with one per dimension",
    "action_high": "upper bound of the actions, in the same form",
    "action_n": "number of discrete actions",
}
LAYOUTS = ("first", "last")


@dataclass(frozen=True)
class CommonOptions:
    """What the user states about a source of any format; None: nothing. Raises `InvalidInput` for an impossible value."""

    channels: str | None = None
    action_low: Any = None
    action_high: Any = None
    action_n: Any = None

    def __post_init__(self) -> None:
        if self.channels not in (None, *LAYOUTS):
            raise InvalidInput(f"channels is {self.channels!r:.60}", hint="pass last (images [H, W, C]) or first ([C, H, W])")
        for name in ("action_low", "action_high"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        n = self.action_n
        if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
            raise InvalidInput(f"action_n is {n!r:.60}", hint="pass the number of discrete actions, a whole number of at least 1")
        if n is not None and not (self.action_low is None and self.action_high is None):
            raise InvalidInput("action_n and the bounds of continuous actions are both given", hint="keep action_n, or the bounds")

    def space(self, declared: ActionSpace | None, file: str) -> ActionSpace | None:
        """Apply the options to the declared action space. Bounds without an option stay as declared."""
        if self.action_n is not None:
            return replace(choices(int(self.action_n), 0, "declared", file), owner="the options")
        if self.action_low is None and self.action_high is None:
            return declared
        low, high = (declared.low, declared.high) if isinstance(declared, Box) else (np.array(-np.inf), np.array(np.inf))
        low = low if self.action_low is None else self.action_low
        high = high if self.action_high is None else self.action_high
        space = box(low, high, "declared", "the options")
        return space and replace(space, owner="the options")


def _numbers(name: str, value: Any) -> np.ndarray:
    """Convert a number or a list of numbers to float64 ``[]`` or ``[A]``. Raises `InvalidInput`."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.ndim > 1 or not array.size or np.isnan(array).any():
            raise ValueError
    except ValueError:
        hint = f"give a number, or a list with one for each dimension: {name}=[-1.0, 0.5]"
        raise InvalidInput(f"{name} is {value!r:.60}", hint=hint) from None
    return array.astype(np.float64)
