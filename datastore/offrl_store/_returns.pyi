from offrl_store._kernels_py import Returns as Returns
from offrl_store._kernels_py import lambda_returns as lambda_returns
