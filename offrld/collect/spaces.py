"""The fields of an environment's spaces, as `offrl.spaces` has them, and whether its steps fit a dataset."""

from __future__ import annotations

from offrl.spaces import by_field, environment_id, flat, observation_fields, schema_action, schema_of, schema_of_spaces
from offrld.environment_spaces import check_steps

__all__ = [
    "by_field", "check_steps", "environment_id", "flat", "observation_fields", "schema_action", "schema_of", "schema_of_spaces",
]  # fmt: skip
