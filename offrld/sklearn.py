"""The public path of `offrld.inprocess.sklearn`."""

from offrld.inprocess.sklearn import Estimator

__all__ = ["Estimator"]
