"""Data with related tasks: real sets, and made ones whose truth is known.

``fetch_*`` read files that you place in the data folder, and check them; ``load_*`` reshape data
that scikit-learn ships; ``make_*`` draw from a known model.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.datasets import load_diabetes, load_digits
from sklearn.utils import Bunch, check_random_state

__all__ = [
    "fetch_landmine",
    "fetch_school",
    "get_data_home",
    "load_diabetes_tasks",
    "load_digits_tasks",
    "make_multitask_classification",
    "make_multitask_regression",
]

SHA256 = {
    "school.npz": "a6bafe4a52ab38961b585149e19b5b075c6433d5e6a963bfd0703f38645ce662",
    "landmine.npz": "3563bb4fb75feff8f501ddf18ccb99cd24142aeda16681e595660a5d22655b91",
}

SCHOOL = """Examination scores of 15,362 pupils in 139 London schools, 1985-1987 (ILEA).

X (15362, 28): year, gender, verbal-reasoning band, ethnic group and school features, one-hot
coded, and a constant; y: the score; task: the school. Used for multi-task learning by Bakker and
Heskes (2003), Evgeniou et al. (2005) and Argyriou et al. (2008). This coding is that of the MALSAR
package, `data/school.mat`."""

LANDMINE = """Radar images of 29 mine fields (Xue et al., 2007).

X (14820, 9): moments, correlations, energy ratio and spatial variance of the signal; y: 1 for a
mine (6.1 %), 0 for clutter; task: the field. Fields 0-14 are foliated, 15-28 bare ground."""


def get_data_home(data_home=None):
    """Return the folder where data files are looked for.

    Parameters
    ----------
    data_home : str or path-like, default=None
        None means the environment variable ``FASTMTL_DATA``, or else ``~/fastmtl_data``.

    Returns
    -------
    folder : pathlib.Path

    Examples
    --------
    >>> from fastmtl.datasets import get_data_home
    >>> get_data_home("here").name
    'here'
    """
    if data_home is None:
        data_home = os.environ.get("FASTMTL_DATA") or Path.home() / "fastmtl_data"
    return Path(data_home).expanduser()


def _read(name, origin, data_home):
    folder = get_data_home(data_home)
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is not in {folder}; place it there, or name its folder with data_home= or "
            f"the environment variable FASTMTL_DATA. It is an .npz with arrays X, y and task, "
            f"made from {origin}"
        )
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[name]:
        raise OSError(
            f"{path} has SHA-256 {found}, expected {SHA256[name]}; it is damaged or another version"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def fetch_school(*, data_home=None, return_X_y=False):
    """Load the School data: exam scores of pupils in 139 schools (regression).

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder that holds ``school.npz``; see :func:`get_data_home`.
    return_X_y : bool, default=False
        Return ``(X, y, tasks)`` instead of a Bunch.

    Returns
    -------
    data : Bunch
        ``X`` float32 (15362, 28), ``y`` (15362,), ``tasks`` (15362,) and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the file is not there; the message says where to put it and where it comes from.
    OSError
        If its checksum is wrong.
    """
    arrays = _read("school.npz", "data/school.mat of the MALSAR package", data_home)
    return _bunch(arrays, SCHOOL, return_X_y)


def fetch_landmine(*, data_home=None, return_X_y=False):
    """Load the Landmine data: mines or clutter in 29 fields (classification).

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder that holds ``landmine.npz``; see :func:`get_data_home`.
    return_X_y : bool, default=False
        Return ``(X, y, tasks)`` instead of a Bunch.

    Returns
    -------
    data : Bunch
        ``X`` (14820, 9), ``y`` (14820,) of 0 and 1, ``tasks`` (14820,) and ``DESCR``.

    Raises
    ------
    FileNotFoundError
        If the file is not there.
    OSError
        If its checksum is wrong.
    """
    arrays = _read("landmine.npz", "the data of Xue et al. (JMLR 8, 2007)", data_home)
    return _bunch(arrays, LANDMINE, return_X_y)


def _bunch(arrays, description, return_X_y):
    if return_X_y:
        return arrays["X"], arrays["y"], arrays["task"]
    return Bunch(X=arrays["X"], y=arrays["y"], tasks=arrays["task"], DESCR=description)


def load_digits_tasks(*, return_X_y=False):
    """scikit-learn's digits seen by nine cameras, each blurred its own way (long form).

    The image of camera (i, j) is 0.4 of the digit plus 0.6 of it moved by i - 1 rows and j - 1
    columns (around the edge). The cameras tell the same ten digits apart with pixels that overlap
    but differ: one model for all blurs them together, and each has few images of its own.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(X, y, tasks)`` instead of a Bunch.

    Returns
    -------
    data : Bunch
        ``X`` (1797, 64) in [0, 1], ``y`` the digits, ``tasks`` like ``"camera 0,2"``, ``DESCR``.

    Examples
    --------
    >>> from fastmtl.datasets import load_digits_tasks
    >>> X, y, tasks = load_digits_tasks(return_X_y=True)
    >>> X.shape, len(set(tasks))
    ((1797, 64), 9)
    """
    digits = load_digits()
    camera = np.random.RandomState(0).randint(9, size=len(digits.target))
    moved = [
        np.roll(image, (c // 3 - 1, c % 3 - 1), axis=(0, 1))
        for image, c in zip(digits.images, camera)
    ]
    X = (0.4 * digits.images + 0.6 * np.stack(moved)).reshape(len(camera), -1) / 16.0
    tasks = np.array([f"camera {c // 3},{c % 3}" for c in camera])
    if return_X_y:
        return X, digits.target, tasks
    return Bunch(X=X, y=digits.target, tasks=tasks, DESCR=load_digits_tasks.__doc__)


def load_diabetes_tasks(*, return_X_y=False):
    """Nine questions about scikit-learn's diabetes patients (matrix form).

    Question t is whether the disease progressed further than the t-th decile of all patients.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(X, Y)`` instead of a Bunch.

    Returns
    -------
    data : Bunch
        ``X`` (442, 10) standardised, ``Y`` (442, 9) of 0 and 1, ``deciles`` (9,) and ``DESCR``.

    Examples
    --------
    >>> from fastmtl.datasets import load_diabetes_tasks
    >>> load_diabetes_tasks().Y.shape
    (442, 9)
    """
    X, y = load_diabetes(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    deciles = np.quantile(y, np.arange(1, 10) / 10)
    Y = (y[:, None] > deciles).astype(np.int64)
    if return_X_y:
        return X, Y
    return Bunch(X=X, Y=Y, deciles=deciles, DESCR=load_diabetes_tasks.__doc__)


def make_multitask_regression(
    n_samples=50,
    n_features=10,
    n_tasks=20,
    *,
    relation="mean",
    kappa=0.2,
    noise=1.0,
    missing=None,
    density=None,
    coef=False,
    random_state=None,
):
    """Draw related regression tasks from a known model.

    Task t has ``y = x · w_t + noise``, with the vectors drawn from a normal distribution whose
    covariance between tasks is the `relation`.

    Parameters
    ----------
    n_samples : int or sequence of int, default=50
        Rows per task; a sequence gives each task its own number. With `missing`, rows in all.
    n_features, n_tasks : int, default=10 and 20
    relation : {"mean", "independent", "clusters", "chain", "negative", "outliers"} or ndarray, \
default="mean"
        The covariance C between tasks: ``"mean"`` 1 + κ on the diagonal and 1 elsewhere;
        ``"clusters"`` the same within two halves, 0 between; ``"negative"`` −1 between the halves;
        ``"chain"`` falls with the distance of task numbers; ``"outliers"`` is ``"mean"`` with every
        fifth task unrelated; or C itself (n_tasks, n_tasks).
    kappa : float, default=0.2
        Variance of the task-specific part.
    noise : float, default=1.0
        Standard deviation of the noise.
    missing : float or None, default=None
        A share in [0, 1): then all tasks share the rows, and that share of Y is NaN (matrix form).
    density : float or None, default=None
        A share in (0, 1]: X is then a CSR matrix with that share of entries.
    coef : bool, default=False
        Also return the truth.
    random_state : int, RandomState or None, default=None

    Returns
    -------
    X : ndarray or CSR matrix of shape (n, n_features)
    y : ndarray of shape (n,) or, with `missing`, (n, n_tasks)
    tasks : ndarray of shape (n,), or None with `missing`
    truth : Bunch
        Only with `coef`: ``coef`` (n_tasks, n_features) and ``covariance`` (n_tasks, n_tasks).

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> from fastmtl.datasets import make_multitask_regression
    >>> X, y, tasks = make_multitask_regression(n_samples=[5, 9], n_tasks=2, random_state=0)
    >>> X.shape, y.shape, tasks.shape
    ((14, 10), (14,), (14,))
    """
    rng = check_random_state(random_state)
    X, tasks, weights, C, score = _draw(
        rng, n_samples, n_features, n_tasks, relation, kappa, missing, density
    )
    y = score + noise * rng.normal(size=score.shape)
    y = _hide(rng, y, missing)
    truth = Bunch(coef=weights, covariance=C)
    return (X, y, tasks, truth) if coef else (X, y, tasks)


def make_multitask_classification(
    n_samples=50,
    n_features=10,
    n_tasks=20,
    *,
    relation="mean",
    kappa=0.2,
    sharpness=2.0,
    missing=None,
    density=None,
    coef=False,
    random_state=None,
):
    """Draw related two-class tasks from a known logistic model.

    Parameters
    ----------
    n_samples, n_features, n_tasks, relation, kappa, missing, density, coef, random_state
        As in :func:`make_multitask_regression`.
    sharpness : float, default=2.0
        Scale of the scores: larger means less label noise.

    Returns
    -------
    X, y, tasks, truth
        As in :func:`make_multitask_regression`; labels are 0.0 and 1.0 (NaN where missing).

    Examples
    --------
    >>> from fastmtl.datasets import make_multitask_classification
    >>> X, Y, _ = make_multitask_classification(40, n_tasks=3, missing=0.5, random_state=0)
    >>> Y.shape
    (40, 3)
    """
    rng = check_random_state(random_state)
    X, tasks, weights, C, score = _draw(
        rng, n_samples, n_features, n_tasks, relation, kappa, missing, density
    )
    score *= sharpness / np.sqrt(n_features)
    y = (rng.uniform(size=score.shape) < 1 / (1 + np.exp(-score))).astype(np.float64)
    y = _hide(rng, y, missing)
    truth = Bunch(coef=weights * sharpness / np.sqrt(n_features), covariance=C)
    return (X, y, tasks, truth) if coef else (X, y, tasks)


def _draw(rng, n_samples, n_features, n_tasks, relation, kappa, missing, density):
    if n_tasks < 1 or n_features < 1:
        raise ValueError(
            f"n_tasks is {n_tasks} and n_features is {n_features}; both must be at least 1"
        )
    if missing is not None and not 0 <= missing < 1:
        raise ValueError(f"missing is {missing!r}; pass a share in [0, 1) or None")
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density is {density!r}; pass a share in (0, 1] or None")
    C = _relation(relation, n_tasks, kappa)
    values, vectors = np.linalg.eigh(C)
    root = vectors * np.sqrt(np.maximum(values, 0))
    weights = root @ rng.normal(size=(n_tasks, n_features))
    sizes = np.broadcast_to(n_samples, (1 if missing is not None else n_tasks,))
    n = int(sizes.sum())
    if density is None:
        X = rng.normal(size=(n, n_features))
    else:
        X = sp.random(n, n_features, density=density, format="csr", random_state=rng)
        X.data = rng.normal(size=X.nnz)
    if missing is not None:
        return X, None, weights, C, X @ weights.T
    tasks = np.repeat(np.arange(n_tasks), sizes)
    start = np.concatenate([[0], np.cumsum(sizes)])
    score = np.concatenate(
        [X[start[t] : start[t + 1]] @ weights[t] for t in range(n_tasks)] or [np.empty(0)]
    )
    return X, tasks, weights, C, score


def _relation(relation, n_tasks, kappa):
    number = np.arange(n_tasks)
    half = number < n_tasks // 2
    same = half[:, None] == half
    shared = {
        "mean": lambda: np.ones((n_tasks, n_tasks)),
        "independent": lambda: np.zeros((n_tasks, n_tasks)),
        "clusters": lambda: same.astype(float),
        "negative": lambda: np.where(same, 1.0, -1.0),
        "chain": lambda: 0.8 ** np.abs(number[:, None] - number),
        "outliers": lambda: np.outer(number % 5 != 4, number % 5 != 4).astype(float),
    }
    if isinstance(relation, str):
        if relation not in shared:
            raise ValueError(
                f"relation is {relation!r}; pass one of {', '.join(map(repr, shared))} or an array"
            )
        C = shared[relation]() + kappa * np.eye(n_tasks)
        return C / C.diagonal().max()
    C = np.asarray(relation, dtype=np.float64)
    if C.shape != (n_tasks, n_tasks):
        raise ValueError(f"relation has shape {C.shape}; pass ({n_tasks}, {n_tasks})")
    return C


def _hide(rng, y, missing):
    if missing:
        y[rng.uniform(size=y.shape) < missing] = np.nan
    return y
