"""Threads are resolved in one place."""

import multiprocessing
import sys

import pytest

from fastmtl import config
from fastmtl._core import cpu


@pytest.mark.parametrize("bad", [0, -2, 1.5, True, "two"])
def test_bad_thread_counts_are_named(bad):
    with pytest.raises(ValueError, match="n_threads is"):
        config.resolve_threads(bad)


@pytest.mark.skipif(not cpu.has_openmp, reason="built without OpenMP")
def test_the_environment_limits_the_default_only(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert config.resolve_threads() == 3
    assert config.resolve_threads(-1) == 3
    assert config.resolve_threads(2) == 2
    assert config.resolve_threads(work=100, work_per_thread=1000) == 1
    assert config.resolve_threads(work=2500, work_per_thread=1000) == 2


def _in_child(queue):
    import numpy as np

    import fastmtl

    queue.put((config.resolve_threads(4), fastmtl.sigmoid_kernel(np.eye(300)).sum()))


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_on_one_thread():
    import numpy as np

    import fastmtl

    want = fastmtl.sigmoid_kernel(np.eye(300), n_threads=2).sum()  # the pool exists before the fork
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    threads, total = queue.get(timeout=60)
    child.join()
    assert threads == 1
    assert total == want
