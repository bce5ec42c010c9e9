"""Fits in forked, spawned and loky workers, and in Python threads at once."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse as sp

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor

# In a file of its own: workers import what they run, and the parent has used threads by then.
WORKERS = """
import multiprocessing, sys, warnings
import joblib, numpy as np
from fastmtl import MultiTaskSGDRegressor

def data():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(800, 6)), np.arange(800) % 8
    return X, X @ rng.normal(size=6) + task, task

def fit(X, y, task, n_threads):
    model = MultiTaskSGDRegressor(solver="sgd", n_threads=n_threads, random_state=0, max_iter=2,
                                  tol=None)
    return model.fit(X, y, tasks=task).coef_

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kind, threads_in_worker = sys.argv[1], int(sys.argv[2])
    X, y, task = data()
    here = {n: fit(X, y, task, n) for n in (1, 2)}
    if kind == "loky":  # which hands large arrays over as read-only memory maps
        run = joblib.Parallel(n_jobs=2, max_nbytes=1000)
        found = run(joblib.delayed(fit)(X, y, task, 2) for _ in range(2))
    else:
        with multiprocessing.get_context(kind).Pool(2) as pool:
            found = pool.starmap(fit, [(X, y, task, 2)] * 2, chunksize=1)
    assert all(np.array_equal(coef, here[threads_in_worker]) for coef in found)
    assert np.array_equal(fit(X, y, task, 2), here[2])
    print("all equal")
"""


@pytest.mark.parametrize(("kind", "threads_in_worker"), [("fork", 1), ("spawn", 2), ("loky", 2)])
def test_workers_give_the_bits_of_the_parent(kind, threads_in_worker, tmp_path):
    if kind not in [*multiprocessing.get_all_start_methods(), "loky"]:
        pytest.skip(f"no {kind} here")
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    # A forked child computes on one thread, because OpenMP's pool does not survive the fork.
    ran = subprocess.run(
        [sys.executable, script, kind, str(threads_in_worker)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == 0, ran.stderr
    assert "all equal" in ran.stdout


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_python_threads_fit_at_once(sparse):
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(600, 6)), np.arange(600) % 8
    y = X @ rng.normal(size=6) + task
    given = sp.csr_matrix(X) if sparse else X
    jobs = []
    for seed in range(2):
        options = {"random_state": seed, "max_iter": 3, "tol": None}
        jobs += [
            (MultiTaskSGDRegressor(solver="saga", **options), y),
            (MultiTaskSGDRegressor(solver="sgd", n_threads=2, **options), y),
            (MultiTaskSGDClassifier(**options), y > 3),
            (MultiTaskSGDClassifier(**options), np.digitize(y, [1, 5])),
        ]

    def fit(job):
        model, target = job
        model.fit(given, target, tasks=task)
        return np.concatenate([np.ravel(w) for w in model.coef_])

    one_by_one = [fit(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(fit, jobs))
    for found, want in zip(at_once, one_by_one):
        assert np.array_equal(found, want)
