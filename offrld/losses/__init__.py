"""Loss functions that several algorithms share."""

from offrld.losses.td import bellman, huber_error, smoothed, squared_error, taken

__all__ = ["bellman", "huber_error", "smoothed", "squared_error", "taken"]
