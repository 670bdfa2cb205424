"""The kernels in NumPy under one name: the oracle of the compiled kernels (`_compiled.py`), and the fallback if those were not built.

Each file `_NAME.pyx` has its oracle `_NAME_py.py`, which documents both. Random numbers agree bit for bit (the same float32 operations in
the same order), so that both draw the same batches and the same noise.
"""

from offrl_store._gather_py import Transitions, Windows
from offrl_store._priorities_py import SumTree, tree_levels
from offrl_store._random_py import draw, normal, permute, philox4x32, sides, uniform
from offrl_store._returns_py import Returns, lambda_returns
from offrl_store._rows_py import RowBuffer, crc32, crc32_rows

NAME = "numpy"

__all__ = [
    "NAME", "Returns", "RowBuffer", "SumTree", "Transitions", "Windows", "crc32", "crc32_rows", "draw", "lambda_returns", "normal",
    "permute", "philox4x32", "sides", "tree_levels", "uniform",
]  # fmt: skip
