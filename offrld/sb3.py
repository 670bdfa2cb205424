"""The public path of `offrld.inprocess.sb3`."""

from offrld.inprocess.sb3 import SB3Wrapper

__all__ = ["SB3Wrapper"]
