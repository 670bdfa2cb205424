"""Values of an algorithm's settings as users give them: nested or dotted, plain or of NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offrl.errors import InvalidInput


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under their dotted names, with NumPy's numbers, arrays and tuples as plain numbers and lists.

    ``{"critic_encoder": {"units": (256,)}}`` becomes ``{"critic_encoder.units": [256]}``. Raises `InvalidInput` for other types of values.
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(name, str):
            raise InvalidInput(f"a setting's name must be text, got {name!r}", hint="see `offrl algos NAME`")
        found.update(flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: _plain(prefix + name, value)})
    return found


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):  # in a list: others are flattened
        return {str(key): _plain(name, item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        return _plain(name, value.tolist())
    raise InvalidInput(
        f"{name}: {value!r} is a {type(value).__name__}", hint="a setting is a number, a text, true, false, or a list of them"
    )
