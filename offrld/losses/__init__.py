"""What several algorithms share: errors and targets of temporal differences, and what families have in common."""

from offrld.losses.td import bellman, huber_error, squared_error, taken

__all__ = ["bellman", "huber_error", "squared_error", "taken"]
