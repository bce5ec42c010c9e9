"""Reading rows block by block, so that a memory-mapped X never has to be in memory at once."""

from __future__ import annotations

import itertools
import mmap
import os
import warnings

import numpy as np
import scipy.sparse as sp
from sklearn import config_context, get_config
from sklearn.utils import assert_all_finite

__all__ = [
    "Pages",
    "bounds",
    "check_fits_memory",
    "in_blocks",
    "validated",
    "warn_if_larger_than_memory",
]

BLOCK_BYTES = 1 << 25


def bounds(X):
    """Where the blocks of X begin, and at last its number of rows: int64 (n_blocks + 1,)."""
    n_rows = X.shape[0]
    n_bytes = X.data.nbytes + X.indices.nbytes if sp.issparse(X) else X.nbytes
    per_block = max(1, BLOCK_BYTES * n_rows // max(n_bytes, 1))
    return np.append(np.arange(0, n_rows, per_block), n_rows)


class Pages:
    """The pages of a dense memory-mapped X, by rows; does nothing for arrays in memory."""

    def __init__(self, X):
        self._map, mode, owner = None, None, X
        while isinstance(owner, np.ndarray):
            mode = getattr(owner, "mode", mode)
            owner = owner.base
        # Letting go of a private (copy-on-write) page would lose what was written to it.
        shared = mode in ("r", "r+", "w+")
        if isinstance(owner, mmap.mmap) and shared and hasattr(owner, "madvise"):
            self._map = owner
            self._offset = X.ctypes.data - np.frombuffer(owner, dtype=np.uint8).ctypes.data
            self._row_bytes = X.strides[0]

    def fetch(self, begin, end):
        """Ask for rows that are needed soon."""
        self._advise("MADV_WILLNEED", begin, end)

    def release(self, begin, end):
        """Let go of rows; the file and its cache keep them."""
        self._advise("MADV_DONTNEED", begin, end)

    def _advise(self, advice, begin, end):
        if self._map is None or begin == end:
            return
        first = self._offset + begin * self._row_bytes
        last = self._offset + end * self._row_bytes
        first -= first % mmap.PAGESIZE
        self._map.madvise(getattr(mmap, advice), first, last - first)


def in_blocks(X):
    """Yield (rows, X[rows]) block by block, letting go of each."""
    pages, cuts = Pages(X), bounds(X)
    for begin, end in itertools.pairwise(cuts):
        yield slice(begin, end), X[begin:end]
        pages.release(begin, end)


def validated(validate, X):
    """``validate(X)`` that looks for NaN and infinity in a memory-mapped X block by block."""
    if not isinstance(X, np.memmap):
        return validate(X)
    with config_context(assume_finite=True):
        checked = validate(X)
    if not get_config()["assume_finite"]:
        for _, block in in_blocks(checked):
            assert_all_finite(block, input_name="X")
    return checked


def machine_memory():
    """Bytes of memory, or infinity where the system does not say."""
    if not hasattr(os, "sysconf"):
        return np.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def warn_if_larger_than_memory(X):
    memory = machine_memory()
    if isinstance(X, np.memmap) and X.nbytes > memory:
        warnings.warn(
            f"X is a memory map of {X.nbytes / 1e9:.3g} GB on a machine with {memory / 1e9:.3g} "
            "GB; sampling='block' reads it in order of blocks, not row by row",
            UserWarning,
            stacklevel=4,
        )


def check_fits_memory(n_heads, d, dtype):
    size, memory = n_heads * d * np.dtype(dtype).itemsize, machine_memory()
    if size > memory / 2:
        raise MemoryError(
            f"coef_ has shape ({n_heads}, {d}), {size / 1e9:.3g} GB on a machine with "
            f"{memory / 1e9:.3g} GB; take mixing_[t] @ shared_coef_ + task_coef_[t] of the tasks "
            "that you need (task_coef_ is sparse)"
        )
