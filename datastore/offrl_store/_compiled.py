"""The compiled kernels under one name, with the interface of `_kernels_py.py`. ImportError if one was not built.

They release the GIL and need no NumPy headers.
"""

from offrl_store._gather import Transitions, Windows
from offrl_store._priorities import SumTree
from offrl_store._priorities_py import tree_levels
from offrl_store._random import draw, normal, permute, philox4x32, uniform
from offrl_store._random_py import sides
from offrl_store._returns import Returns, lambda_returns
from offrl_store._rows import RowBuffer, crc32, crc32_rows

NAME = "cython"

__all__ = [
    "NAME", "Returns", "RowBuffer", "SumTree", "Transitions", "Windows", "crc32", "crc32_rows", "draw", "lambda_returns", "normal",
    "permute", "philox4x32", "sides", "tree_levels", "uniform",
]  # fmt: skip
