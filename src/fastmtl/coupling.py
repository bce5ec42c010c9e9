"""How tasks are coupled: one factored covariance between tasks, C = B Bᵀ + diag(κ).

`TaskCoupling` is what every estimator's ``coupling=`` accepts beside a word. It holds the mixing
matrix B (T, R) and the task-specific variances κ (T,); the solvers see nothing else.
"""

from __future__ import annotations

import numbers
from functools import cache
from typing import NamedTuple

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

__all__ = ["Factors", "Learning", "TaskCoupling", "TaskRelations", "resolve_coupling"]

EXACT_RANK = 64  # columns of B in which any C is met without being asked
WORDS = ("mean", "independent", "pooled", "learn")


class Factors(NamedTuple):
    """B and κ for a known number of tasks: C = mixing @ mixing.T + diag(kappa)."""

    mixing: np.ndarray
    kappa: np.ndarray

    def covariance(self):
        return self.mixing @ self.mixing.T + np.diag(self.kappa)

    def extended(self, n_tasks):
        """With a row of B and κ for each task that came later: the mean of those known."""
        mixing, kappa = self
        new = n_tasks - len(kappa)
        mixing = np.vstack([mixing, np.tile(mixing.mean(axis=0), (new, 1))])
        return Factors(mixing, np.append(kappa, [kappa.mean()] * new))


class Learning(NamedTuple):
    """What a coupling that is learned asks for; see `TaskCoupling.learn`."""

    rank: int | str
    feature_covariance: str
    scale: str


class TaskCoupling:
    """A covariance between tasks, in the factored form C = B Bᵀ + diag(κ).

    Task t predicts with ``w_t = Σ_r B[t, r] s_r + v_t``, and the penalty
    ``½ Σ_r ‖s_r‖² + ½ Σ_t ‖v_t‖² / κ_t``, minimised over the split into the shared ``s_r`` and the
    task-specific ``v_t``, equals ``½ Σ_ij K_ij w_i·w_j`` with the precision ``K = C⁻¹``.

    Do not call the constructor: use a classmethod, which names what its argument is. A
    *precision* K with positive off-diagonal entries pushes tasks apart, a *covariance* C with
    positive off-diagonal entries pulls them together; mixing them up is the usual mistake.

    See Also
    --------
    MultiTaskSGDRegressor : takes a coupling, or one of the words ``"mean"``, ``"independent"``,
        ``"pooled"`` and ``"learn"``.

    References
    ----------
    .. [1] T. Evgeniou and M. Pontil, "Regularized multi-task learning", KDD 2004.
    .. [2] T. Evgeniou, C. Micchelli and M. Pontil, "Learning multiple tasks with kernel methods",
       JMLR 6, 2005.

    Examples
    --------
    >>> from fastmtl import TaskCoupling
    >>> TaskCoupling.mean(kappa=0.5).covariance(2)
    array([[1.5, 1. ],
           [1. , 1.5]])
    """

    def __init__(self, *, mixing, kappa, description, learning=None):
        self.learning = learning  # None where C is given
        self.truncation_error = 0.0
        self._mixing = mixing  # None: no shared part; "ones": one column of ones; or (T, R)
        self._kappa = kappa  # a number for every task, or (T,)
        self._description = description

    def __repr__(self):
        return f"TaskCoupling.{self._description}"

    def __eq__(self, other):
        return (
            isinstance(other, TaskCoupling)
            and self._description == other._description
            and self.learning == other.learning
            and np.array_equal(np.asarray(self._mixing), np.asarray(other._mixing))
            and np.array_equal(self._kappa, other._kappa)
        )

    __hash__ = None

    @classmethod
    def mean(cls, kappa=1.0):
        """Tasks vary around one shared vector: ``w_t = w_0 + v_t``.

        Parameters
        ----------
        kappa : float or array-like of shape (n_tasks,), default=1.0
            The variance of the task-specific part relative to the shared one, positive. Small
            values pull the tasks together, large ones let them part. With the penalty written as
            ``λ₀‖w_0‖² + λ₁ Σ‖v_t‖²`` it is ``λ₀ / λ₁``.

        Returns
        -------
        coupling : TaskCoupling

        Raises
        ------
        ValueError
            If `kappa` is not positive and finite.

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.mean(kappa=0.1)
        TaskCoupling.mean(kappa=0.1)
        """
        kappa = _check_kappa(kappa)
        return cls(mixing="ones", kappa=kappa, description=f"mean(kappa={_short(kappa)})")

    @classmethod
    def independent(cls, kappa=1.0):
        """Tasks share nothing: C = diag(κ), exactly one plain model per task.

        Parameters
        ----------
        kappa : float or array-like of shape (n_tasks,), default=1.0
            The prior variance of each task's vector, positive.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.independent().covariance(2)
        array([[1., 0.],
               [0., 1.]])
        """
        kappa = _check_kappa(kappa)
        return cls(mixing=None, kappa=kappa, description=f"independent(kappa={_short(kappa)})")

    @classmethod
    def pooled(cls):
        """All tasks have one vector: C is all ones.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.pooled().covariance(2)
        array([[1., 1.],
               [1., 1.]])
        """
        return cls(mixing="ones", kappa=0.0, description="pooled()")

    @classmethod
    def learn(cls, *, rank="auto", feature_covariance="identity", scale="unit"):
        """Learn C from the data, by maximising their marginal likelihood.

        The fitted vectors of small tasks are mostly noise, so a covariance taken from them [1]_
        finds relations in noise. The marginal likelihood (evidence) [2]_ of B, κ and the noise
        weighs each task by what its data say. Losses that are not quadratic enter by their
        expansion about the posterior mode (Laplace's approximation): classifiers by the log loss,
        ``"poisson"`` by its own, other regressors by the squared error. `fit` then minimises the
        usual objective under the C found, starting from the mode.

        Parameters
        ----------
        rank : int or "auto", default="auto"
            Columns of B. ``"auto"`` begins with one shared vector, lets tasks whose rows are alike
            have vectors that are alike, and frees B column by column, each while the evidence, less
            the cost of freeing it, grows; so where nothing beyond a mean is to be found, it finds
            ``"mean"``, with κ.
        feature_covariance : {"identity", "diagonal", "full"}, default="identity"
            Whether to learn, as well, a covariance Ω of features and intercept that all vectors
            have in common: the prior is matrix normal, C ⊗ Ω [3]_. ``"full"`` is shrunk towards
            uncorrelated features. The penalty is then ``½ Σ_ij K_ij w_i·Ω⁻¹ w_j``. Not for many
            features (more than 128, or fewer with more than 900 tasks), and ``"full"`` not for
            sparse X.
        scale : {"unit", "evidence"}, default="unit"
            ``"unit"`` scales C to a mean variance of 1, so that `alpha` means what it does with
            ``"independent"``; ``"evidence"`` takes the strength of the penalty from the data too,
            whatever `alpha` is.

        Returns
        -------
        coupling : TaskCoupling

        References
        ----------
        .. [1] Y. Zhang and D.-Y. Yeung, "A convex formulation for learning task relationships in
           multi-task learning", UAI 2010.
        .. [2] E. Bonilla, K. Chai and C. Williams, "Multi-task Gaussian process prediction",
           NeurIPS 2008.
        .. [3] Y. Zhang and J. Schneider, "Learning multiple tasks with a sparse matrix-normal
           penalty", NeurIPS 2010.

        Examples
        --------
        >>> import numpy as np
        >>> from fastmtl import MultiTaskSGDRegressor, TaskCoupling
        >>> rng = np.random.default_rng(0)
        >>> W = np.outer([1, 1, -1, -1], rng.normal(size=20))
        >>> X, task = rng.normal(size=(400, 20)), np.repeat(range(4), 100)
        >>> y = np.einsum("ij,ij->i", X, W[task]) + rng.normal(size=400)
        >>> model = MultiTaskSGDRegressor(coupling=TaskCoupling.learn(rank=1), alpha=0.01)
        >>> model.fit(X, y, tasks=task).task_correlation_.round(1) + 0.0
        array([[ 1.,  1., -1., -1.],
               [ 1.,  1., -1., -1.],
               [-1., -1.,  1.,  1.],
               [-1., -1.,  1.,  1.]])
        """
        if rank != "auto" and (
            not isinstance(rank, numbers.Integral) or isinstance(rank, bool) or rank < 1
        ):
            raise ValueError(f"rank is {rank!r}; pass 'auto' or an integer >= 1")
        for name, value, words in (
            ("feature_covariance", feature_covariance, ("identity", "diagonal", "full")),
            ("scale", scale, ("unit", "evidence")),
        ):
            if not isinstance(value, str) or value not in words:
                raise ValueError(f"{name} is {value!r}; pass one of {', '.join(map(repr, words))}")
        given = {"rank": rank, "feature_covariance": feature_covariance, "scale": scale}
        defaults = {"rank": "auto", "feature_covariance": "identity", "scale": "unit"}
        said = ", ".join(f"{k}={v!r}" for k, v in given.items() if v != defaults[k])
        return cls(mixing=None, kappa=1.0, description=f"learn({said})", learning=Learning(**given))

    @classmethod
    def low_rank(cls, rank, *, learn=True):
        """Learn `rank` shared basis functions: ``f_t(x) = Σ_r B[t, r] s_r·x + v_t·x``.

        Parameters
        ----------
        rank : int
            Columns of B, at least 1.
        learn : bool, default=True
            B is learned, as by :meth:`learn`. A B that is known goes to :meth:`from_factors`.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.low_rank(2)
        TaskCoupling.learn(rank=2)
        """
        if learn is not True:
            raise ValueError(
                f"learn is {learn!r}; low_rank learns B: for a given one, use "
                "TaskCoupling.from_factors(B, kappa)"
            )
        if rank == "auto":
            raise ValueError("rank is 'auto'; pass an integer >= 1, or use TaskCoupling.learn()")
        return cls.learn(rank=rank)

    @classmethod
    def from_factors(cls, mixing, kappa):
        """Give B and κ directly: shared basis functions with known mixing weights.

        Parameters
        ----------
        mixing : array-like of shape (n_tasks, n_shared)
            B: how much of each shared vector enters each task.
        kappa : float or array-like of shape (n_tasks,)
            Task-specific variances, non-negative; 0 leaves a task with the shared part alone.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.from_factors([[1.0], [-1.0]], kappa=0.5).covariance(2)
        array([[ 1.5, -1. ],
               [-1. ,  1.5]])
        """
        mixing = check_array(mixing, dtype=np.float64, input_name="mixing", ensure_min_features=0)
        kappa = _check_kappa(kappa, zero=True)
        if np.ndim(kappa) and len(kappa) != len(mixing):
            raise ValueError(
                f"kappa has {len(kappa)} entries for {len(mixing)} rows of mixing; "
                "pass one per task, or a number"
            )
        return cls(
            mixing=mixing,
            kappa=kappa,
            description=f"from_factors(mixing={mixing.shape}, kappa={_short(kappa)})",
        )

    @classmethod
    def from_covariance(cls, C, *, rank=None):
        """Give the covariance between tasks: large positive entries tie tasks together.

        Parameters
        ----------
        C : array-like of shape (n_tasks, n_tasks)
            Symmetric positive semi-definite, in the order of the fitted model's ``tasks_`` (sorted
            labels). A singular C confines the tasks' vectors to its range.
        rank : int, default=None
            The most columns of B, since a step costs in proportion to them. None meets C to
            rounding up to 64 tasks, and takes 64 beyond.

        Returns
        -------
        coupling : TaskCoupling
            Where C is met to rounding, κ is its smallest eigenvalue and B the rest. Otherwise
            ``B Bᵀ + diag(κ)`` keeps the diagonal of C, and the attribute `truncation_error` is
            what it lacks of C, relative, in the Frobenius norm; the coupling's repr says it too.

        Raises
        ------
        ValueError
            If `C` is not square, symmetric and positive semi-definite; the message names the
            eigenvalue that fails.

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.from_covariance([[2.0, 1.0], [1.0, 2.0]]).covariance(2).round(12)
        array([[2., 1.],
               [1., 2.]])
        """
        C = _check_psd(C, "C", "covariance")
        if rank is not None and (
            not isinstance(rank, numbers.Integral) or isinstance(rank, bool) or rank < 1
        ):
            raise ValueError(f"rank is {rank!r}; pass an integer >= 1 or None")
        return cls._of_covariance(C, f"from_covariance({C.shape})", rank)

    @classmethod
    def from_precision(cls, K):
        """Give K of the norm ``½ Σ_ij K_ij w_i·w_j``: positive entries push tasks apart.

        Parameters
        ----------
        K : array-like of shape (n_tasks, n_tasks)
            Symmetric positive definite, in the order of ``tasks_`` (sorted labels).

        Returns
        -------
        coupling : TaskCoupling
            With covariance ``K⁻¹``.

        Raises
        ------
        ValueError
            If `K` is not square, symmetric and positive definite. A singular K leaves some
            direction unpenalised: add a ridge, ``K + 1e-3 * np.eye(len(K))``.

        Examples
        --------
        >>> import numpy as np
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.from_precision(np.diag([1.0, 4.0])).covariance(2).round(12)
        array([[1.  , 0.  ],
               [0.  , 0.25]])
        """
        K = _check_psd(K, "K", "precision")
        values, vectors = np.linalg.eigh(K)
        if values[0] <= len(K) * np.finfo(float).eps * max(values[-1], 1e-300):
            raise ValueError(
                f"K (precision) is singular: its smallest eigenvalue is {values[0]:.3g}, which "
                "leaves that direction without a penalty; add a ridge, K + 1e-3 * np.eye(len(K))"
            )
        return cls._of_covariance((vectors / values) @ vectors.T, f"from_precision({K.shape})")

    @classmethod
    def from_graph(cls, A, ridge=1.0):
        """Give a graph of tasks: the precision is its Laplacian plus a ridge.

        The penalty is ``½ Σ_(i<j) A_ij ‖w_i - w_j‖² + ½ ridge Σ_t ‖w_t‖²``.

        Parameters
        ----------
        A : array-like of shape (n_tasks, n_tasks)
            Symmetric, non-negative edge weights; the diagonal is ignored.
        ridge : float, default=1.0
            Positive.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.from_graph([[0, 1], [1, 0]], ridge=1.0).covariance(2).round(3)
        array([[0.667, 0.333],
               [0.333, 0.667]])
        """
        A = _check_square(A, "A")
        if not isinstance(ridge, numbers.Real) or not 0 < ridge < np.inf:
            raise ValueError(f"ridge is {ridge!r}; pass a positive finite number")
        A = A - np.diag(np.diag(A))
        if A.size and A.min() < 0:
            raise ValueError(f"A has a negative edge weight ({A.min():.3g}); weights must be ≥ 0")
        laplacian = np.diag(A.sum(axis=1)) - A
        values, vectors = np.linalg.eigh(laplacian + ridge * np.eye(len(A)))
        C = (vectors / values) @ vectors.T
        return cls._of_covariance(C, f"from_graph({A.shape}, ridge={ridge:g})")

    @classmethod
    def from_similarity(cls, S):
        """Give similarities of tasks, taken as a covariance after clipping negative eigenvalues.

        Parameters
        ----------
        S : array-like of shape (n_tasks, n_tasks)
            Symmetric, larger for more alike, for example correlations. It need not be positive
            semi-definite: negative eigenvalues are set to zero, the nearest such matrix.

        Returns
        -------
        coupling : TaskCoupling

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.from_similarity([[1.0, 0.8], [0.8, 1.0]]).covariance(2).round(12)
        array([[1. , 0.8],
               [0.8, 1. ]])
        """
        S = _check_square(S, "S")
        values, vectors = np.linalg.eigh(S)
        if values[-1] <= 0:
            raise ValueError(
                f"S has no positive eigenvalue (largest {values[-1]:.3g}); similarities must grow "
                "with likeness"
            )
        C = (vectors * np.maximum(values, 0)) @ vectors.T
        return cls._of_covariance((C + C.T) / 2, f"from_similarity({S.shape})")

    @classmethod
    def _of_covariance(cls, C, description, rank=None):
        rank = rank or EXACT_RANK
        values, vectors = np.linalg.eigh(C)
        floor = max(values[0], 0.0)
        excess = values - floor
        keep = excess > len(C) * np.finfo(float).eps * max(values[-1], 1e-300)
        mixing, kappa, error = vectors[:, keep] * np.sqrt(excess[keep]), np.full(len(C), floor), 0.0
        if mixing.shape[1] > rank:
            mixing, kappa = _principal_factors(C, rank)
            residual = mixing @ mixing.T + np.diag(kappa) - C
            error = float(np.linalg.norm(residual) / np.linalg.norm(C))
            description = f"{description[:-1]}, rank={rank}, error={error:.2g})"
        coupling = cls(mixing=np.ascontiguousarray(mixing), kappa=kappa, description=description)
        coupling.truncation_error = error
        return coupling

    @property
    def has_shared_part(self):
        """Whether tasks share anything (B has a column)."""
        return self.learning is not None or (
            self._mixing is not None
            and (isinstance(self._mixing, str) or self._mixing.shape[1] > 0)
        )

    def factor(self, n_tasks):
        """Return B and κ for a number of tasks.

        Parameters
        ----------
        n_tasks : int
            At least 1.

        Returns
        -------
        factors : Factors
            A named tuple of ``mixing`` (n_tasks, n_shared) and ``kappa`` (n_tasks,), float64.

        Raises
        ------
        ValueError
            If the coupling was given for another number of tasks.

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.mean(0.1).factor(2)
        Factors(mixing=array([[1.], [1.]]), kappa=array([0.1, 0.1]))
        """
        if self.learning is not None:
            raise ValueError(
                f"coupling is {self!r}, which only a fit makes known; see its mixing_ and kappa_"
            )
        if self._mixing is None:
            mixing = np.empty((n_tasks, 0))
        elif isinstance(self._mixing, str):
            mixing = np.ones((n_tasks, 1))
        else:
            mixing = self._mixing
        given = len(self._kappa) if np.ndim(self._kappa) else len(mixing)
        if len(mixing) != n_tasks or given != n_tasks:
            wrong = given if len(mixing) == n_tasks else len(mixing)
            raise ValueError(
                f"coupling is {self!r}, made for {wrong} tasks, but the data has {n_tasks}"
            )
        kappa = np.broadcast_to(np.asarray(self._kappa, dtype=np.float64), (n_tasks,))
        return Factors(np.array(mixing, dtype=np.float64, order="C"), np.array(kappa))

    def covariance(self, n_tasks):
        """Return C = B Bᵀ + diag(κ), of shape (n_tasks, n_tasks).

        Examples
        --------
        >>> from fastmtl import TaskCoupling
        >>> TaskCoupling.independent(2.0).covariance(1)
        array([[2.]])
        """
        return self.factor(n_tasks).covariance()


class TaskRelations:
    """The relations of a fitted model's tasks, from its ``mixing_`` and ``kappa_``."""

    @property
    def task_covariance_(self):
        """C = B Bᵀ + diag(κ), given or learned: (n_tasks, n_tasks), in the order of ``tasks_``."""
        check_is_fitted(self, "kappa_")
        return Factors(self.mixing_, self.kappa_).covariance()

    @property
    def task_correlation_(self):
        """C scaled to a diagonal of ones; a task without variance correlates with none."""
        C = self.task_covariance_
        scale = np.sqrt(np.diag(C))
        scale = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        correlation = C * scale[:, None] * scale
        np.fill_diagonal(correlation, 1.0)
        return correlation


def resolve_coupling(coupling):
    """Return a `TaskCoupling` for a word or a coupling; refuse anything else."""
    if isinstance(coupling, TaskCoupling):
        return coupling
    if isinstance(coupling, str) and coupling in WORDS:
        return _of_word(coupling)
    if isinstance(coupling, np.ndarray | list | tuple):
        raise ValueError(
            "coupling is a bare matrix; say what it is: TaskCoupling.from_covariance(C), "
            ".from_precision(K), .from_graph(A) or .from_similarity(S)"
        )
    raise ValueError(
        f"coupling is {coupling!r}; pass one of {', '.join(map(repr, WORDS))} or a TaskCoupling"
    )


@cache
def _of_word(word):
    return getattr(TaskCoupling, word)()


def _principal_factors(C, rank):
    """B of `rank` columns and κ ≥ 0 with B Bᵀ + diag(κ) near C, and its diagonal met."""
    kappa = np.full(len(C), max(np.linalg.eigvalsh(C)[0], 0.0))
    for _ in range(20):
        values, vectors = np.linalg.eigh(C - np.diag(kappa))
        mixing = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0.0))
        kappa = np.diag(C) - np.sum(mixing**2, axis=1)
        if kappa.min() >= 0:
            continue
        # A communality above the variance: shrink the task's row to what its variance allows.
        over = kappa < 0
        mixing[over] *= np.sqrt(np.diag(C)[over] / np.sum(mixing[over] ** 2, axis=1))[:, None]
        kappa[over] = 0.0
    return mixing, kappa


def _short(kappa):
    return f"{kappa:g}" if np.ndim(kappa) == 0 else f"array of {len(kappa)}"


def _check_kappa(kappa, *, zero=False):
    try:
        values = np.asarray(kappa, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.asarray(np.nan)
    bad = values < 0 if zero else values <= 0
    if values.ndim > 1 or not values.size or not np.isfinite(values).all() or bad.any():
        sign = "non-negative" if zero else "positive"
        raise ValueError(f"kappa is {kappa!r}; pass a {sign} finite number, or one per task")
    return float(values) if values.ndim == 0 else values


def _check_square(matrix, name):
    matrix = check_array(matrix, dtype=np.float64, input_name=name)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} has shape {matrix.shape}; pass a square matrix, one row per task")
    asymmetry = np.abs(matrix - matrix.T).max()
    if asymmetry > 1e-8 * max(np.abs(matrix).max(), 1e-300):
        raise ValueError(
            f"{name} is not symmetric: entries differ from their mirror by up to {asymmetry:.3g}"
        )
    return (matrix + matrix.T) / 2


def _check_psd(matrix, name, meaning):
    matrix = _check_square(matrix, name)
    values = np.linalg.eigvalsh(matrix)
    if values[0] < -1e-8 * max(abs(values[-1]), abs(values[0])):
        raise ValueError(
            f"{name} ({meaning}) is not positive semi-definite: its smallest eigenvalue is "
            f"{values[0]:.6g} (number 1 of {len(values)}); did you mean another of "
            "TaskCoupling.from_covariance, from_precision, from_graph or from_similarity?"
        )
    return matrix
