"""The compiled kernels under one name: the functions of `_kernels_py.py`. No GIL, no NumPy headers. ImportError if one is missing."""

from ._gather import Transitions, Windows
from ._kernels_py import sides, tree_levels
from ._priorities import SumTree
from ._random import draw, normal, permute, philox4x32, uniform
from ._returns import Returns, lambda_returns
from ._rows import RowBuffer, crc32, crc32_rows

NAME = "cython"

__all__ = [
    "NAME", "Returns", "RowBuffer", "SumTree", "Transitions", "Windows", "crc32", "crc32_rows", "draw", "lambda_returns", "normal",
    "permute", "philox4x32", "sides", "tree_levels", "uniform",
]  # fmt: skip
