"""fastmtl: fast multi-task learning on the CPU."""

__version__ = "0.1.0"

from fastmtl.config import get_config, show_config
from fastmtl.coupling import TaskCoupling
from fastmtl.kernel_machines import MultiTaskKernelRidge, MultiTaskSVC, MultiTaskSVR
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor

__all__ = [
    "MultiTaskKernelRidge",
    "MultiTaskSGDClassifier",
    "MultiTaskSGDRegressor",
    "MultiTaskSVC",
    "MultiTaskSVR",
    "TaskCoupling",
    "__version__",
    "get_config",
    "show_config",
]
