from offrl_store._kernels_py import draw as draw
from offrl_store._kernels_py import normal as normal
from offrl_store._kernels_py import permute as permute
from offrl_store._kernels_py import philox4x32 as philox4x32
from offrl_store._kernels_py import uniform as uniform
