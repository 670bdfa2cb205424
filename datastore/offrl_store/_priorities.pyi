from offrl_store._kernels_py import SumTree as SumTree
