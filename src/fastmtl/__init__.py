"""fastmtl: fast multi-task learning on the CPU."""

__version__ = "0.1.0"

from fastmtl.config import get_config, show_config
from fastmtl.coupling import TaskCoupling
from fastmtl.kernel_machines import MultiTaskKernelRidge, MultiTaskSVC, MultiTaskSVR
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.nystroem import SigmoidNystroem, make_kernel_sgd

__all__ = [
    "MultiTaskKernelRidge",
    "MultiTaskSGDClassifier",
    "MultiTaskSGDRegressor",
    "MultiTaskSVC",
    "MultiTaskSVR",
    "SigmoidNystroem",
    "TaskCoupling",
    "__version__",
    "get_config",
    "make_kernel_sgd",
    "show_config",
]
