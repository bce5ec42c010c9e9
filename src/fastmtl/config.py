"""What this installation is and uses: version, instruction set, threads, BLAS."""

from __future__ import annotations

import functools
import numbers
import os
import platform
import threading

import joblib
import numpy as np
import scipy
import sklearn
import threadpoolctl

from fastmtl._core import cpu

__all__ = ["get_config", "resolve_threads", "show_config"]

_forked_child = threading.Event()
if hasattr(os, "register_at_fork"):
    # libgomp's pool does not survive a fork: a parallel region in the child would wait for ever.
    os.register_at_fork(after_in_child=_forked_child.set)


def resolve_threads(n_threads=None, *, work=None, work_per_thread=200_000):
    """Return how many threads a compiled call may use.

    Parameters
    ----------
    n_threads : int or None, default=None
        A positive number is taken as it is. ``None`` and ``-1`` mean all that this process may use:
        ``OMP_NUM_THREADS`` where it is set, else the physical cores within the affinity mask and
        the container's CPU quota.
    work : int or None, default=None
        The size of the call in elementary operations. With ``n_threads=None``, small calls stay on
        one thread.
    work_per_thread : int, default=200_000
        How much work pays for starting one more thread.

    Returns
    -------
    n_threads : int
        At least 1; always 1 in a build without OpenMP, and in a process forked from one that had
        already imported fastmtl.

    Raises
    ------
    ValueError
        If `n_threads` is 0, below -1, or not an integer.

    Examples
    --------
    >>> from fastmtl.config import resolve_threads
    >>> resolve_threads(1)
    1
    """
    if n_threads is not None and (
        isinstance(n_threads, bool | np.bool_)
        or not isinstance(n_threads, numbers.Integral)
        or n_threads == 0
        or n_threads < -1
    ):
        raise ValueError(
            f"n_threads is {n_threads!r}; pass a positive integer, or None or -1 for all cores"
        )
    if not cpu.has_openmp or _forked_child.is_set():
        return 1
    if n_threads is not None and n_threads > 0:
        return int(n_threads)
    available = _available_threads()
    if n_threads is None and work is not None:
        return int(min(available, max(1, work // work_per_thread)))
    return available


def _available_threads():
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if limit.isdigit() and int(limit) > 0:
        return int(limit)
    return _physical_threads()


@functools.cache
def _physical_threads():
    # joblib starts a subprocess to count physical cores; once is enough.
    return max(1, joblib.cpu_count(only_physical_cores=True))


def get_config():
    """Return what :func:`show_config` prints, as a dict.

    Returns
    -------
    config : dict
        Keys ``"fastmtl"``, ``"python"``, ``"numpy"``, ``"scipy"``, ``"scikit-learn"`` (versions),
        ``"machine"``, ``"simd"`` (the path in use), ``"simd_available"``, ``"openmp"`` (bool),
        ``"threads"`` (int) and ``"blas"`` (list of str).

    Examples
    --------
    >>> import fastmtl
    >>> sorted(fastmtl.get_config())[:3]
    ['blas', 'fastmtl', 'machine']
    """
    from fastmtl import __version__

    blas = [
        f"{pool['internal_api']} {pool['version']} ({pool['num_threads']} threads)"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return {
        "fastmtl": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "simd": cpu.simd_path,
        "simd_available": list(cpu.simd_available),
        "openmp": cpu.has_openmp,
        "threads": resolve_threads(),
        "blas": blas,
    }


def show_config():
    """Print the version, the SIMD path, OpenMP, the threads and the BLAS in use.

    Force a lower SIMD path by setting ``FASTMTL_SIMD`` to ``base`` or ``avx2`` before the import,
    and the number of threads by ``OMP_NUM_THREADS``.

    Examples
    --------
    >>> import fastmtl
    >>> fastmtl.show_config()
    fastmtl         ...
    """
    for key, value in get_config().items():
        if isinstance(value, list):
            value = ", ".join(value) or "none found"
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        print(f"{key:<15} {value}")
