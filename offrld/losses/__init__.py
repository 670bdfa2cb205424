"""Losses, targets, settings and networks that several algorithms share."""

from offrld.losses.td import bellman, taken

__all__ = ["bellman", "taken"]
