"""What several algorithms share: targets of temporal differences, and what families have in common."""

from offrld.losses.td import bellman, taken

__all__ = ["bellman", "taken"]
