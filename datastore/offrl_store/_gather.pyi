from offrl_store._kernels_py import Transitions as Transitions
from offrl_store._kernels_py import Windows as Windows
