"""fastmtl: fast multi-task learning on the CPU."""

__version__ = "0.1.0"

from fastmtl.config import get_config, show_config
from fastmtl.coupling import TaskCoupling
from fastmtl.kernels import (
    linear_kernel,
    polynomial_kernel,
    rbf_kernel,
    sigmoid_kernel,
    tanh_kernel,
)
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.network import MultiTaskNetworkClassifier, MultiTaskNetworkRegressor

__all__ = [
    "MultiTaskNetworkClassifier",
    "MultiTaskNetworkRegressor",
    "MultiTaskSGDClassifier",
    "MultiTaskSGDRegressor",
    "TaskCoupling",
    "__version__",
    "get_config",
    "linear_kernel",
    "polynomial_kernel",
    "rbf_kernel",
    "show_config",
    "sigmoid_kernel",
    "tanh_kernel",
]
