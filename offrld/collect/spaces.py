"""Whether an environment fits a dataset; the fields of its spaces are `offrl.spaces`'s."""

from __future__ import annotations

from typing import Any

import numpy as np

from offrl.errors import InvalidInput
from offrl.spaces import by_field, environment_id, flat, observation_fields, schema_action, schema_of, schema_of_spaces
from offrl_store import Schema

HINT = "collect in the environment that the data comes from, or into another dataset"


def check_fits(name: str, wanted: Schema, stored: Schema) -> None:
    """`InvalidInput` unless steps of ``wanted``, an environment's schema, can be appended to a dataset of ``stored``.

    Args:
        name: of the environment, for the message.
    """
    other = stored.metadata.get("env_id")
    env_id = wanted.metadata.get("env_id")
    if other and env_id and other != env_id:
        raise InvalidInput(f"the dataset is of {other}, the steps are of {env_id}", hint=HINT)
    mine, theirs = ({column.name: column for column in schema.columns} for schema in (wanted, stored))
    for column in mine.keys() - theirs.keys():
        raise InvalidInput(f"{name} has {column}, the dataset has not: {', '.join(theirs)}", hint=HINT)
    for column in theirs.keys() - mine.keys():
        raise InvalidInput(f"the dataset has {column}, {name} has not: {', '.join(mine)}", hint=HINT)
    for column, each in mine.items():
        kept = theirs[column].field
        if (each.field.dtype, each.field.shape) != (kept.dtype, kept.shape):
            ours, its = (f"{field.dtype.name} {list(field.shape)}" for field in (each.field, kept))
            raise InvalidInput(f"{name} has {column} of {ours}, the dataset {its}", hint=HINT)
        low, high = each.field.low, each.field.high
        if each.role == "action" and not (_same(low, kept.low) and _same(high, kept.high)):
            raise InvalidInput(f"{name} has actions from {low} to {high}, the dataset from {kept.low} to {kept.high}", hint=HINT)


def _same(a: Any, b: Any) -> bool:
    return (a is None) == (b is None) and (a is None or np.array_equal(a, b))


__all__ = [
    "HINT", "by_field", "check_fits", "environment_id", "flat", "observation_fields", "schema_action", "schema_of", "schema_of_spaces",
]  # fmt: skip
