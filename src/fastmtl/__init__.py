"""fastmtl: fast multi-task learning on the CPU."""

__version__ = "0.1.0"

from fastmtl import datasets, layers, plot
from fastmtl.config import get_config, show_config
from fastmtl.coupling import TaskCoupling
from fastmtl.kernel_machines import MultiTaskKernelRidge, MultiTaskSVC, MultiTaskSVR
from fastmtl.kernels import (
    SigmoidOperator,
    iter_gram,
    kernel_gradient,
    linear_kernel,
    polynomial_kernel,
    rbf_kernel,
    sigmoid_kernel,
    tanh_kernel,
)
from fastmtl.linear import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.losses import PointLoss
from fastmtl.metrics import make_task_scorer, task_scores
from fastmtl.model_selection import (
    MultiTaskSGDClassifierCV,
    MultiTaskSGDRegressorCV,
    PoolingPath,
    pooling_path,
)
from fastmtl.network import (
    MultiTaskNetwork,
    MultiTaskNetworkClassifier,
    MultiTaskNetworkRegressor,
)
from fastmtl.nystroem import SigmoidNystroem, make_kernel_sgd
from fastmtl.psd import kernel_diagnostics, nearest_psd
from fastmtl.similarity import TaskSimilarity, task_similarity
from fastmtl.sparse_linear import MultiTaskSparseClassifier, MultiTaskSparseRegressor
from fastmtl.splitters import LeaveTasksOut, TaskStratifiedKFold
from fastmtl.transfer import TransferReport, transfer_report

__all__ = [
    "LeaveTasksOut",
    "MultiTaskKernelRidge",
    "MultiTaskNetwork",
    "MultiTaskNetworkClassifier",
    "MultiTaskNetworkRegressor",
    "MultiTaskSGDClassifier",
    "MultiTaskSGDClassifierCV",
    "MultiTaskSGDRegressor",
    "MultiTaskSGDRegressorCV",
    "MultiTaskSVC",
    "MultiTaskSVR",
    "MultiTaskSparseClassifier",
    "MultiTaskSparseRegressor",
    "PointLoss",
    "PoolingPath",
    "SigmoidNystroem",
    "SigmoidOperator",
    "TaskCoupling",
    "TaskSimilarity",
    "TaskStratifiedKFold",
    "TransferReport",
    "__version__",
    "datasets",
    "get_config",
    "iter_gram",
    "kernel_diagnostics",
    "kernel_gradient",
    "layers",
    "linear_kernel",
    "make_kernel_sgd",
    "make_task_scorer",
    "nearest_psd",
    "plot",
    "polynomial_kernel",
    "pooling_path",
    "rbf_kernel",
    "show_config",
    "sigmoid_kernel",
    "tanh_kernel",
    "task_scores",
    "task_similarity",
    "transfer_report",
]
