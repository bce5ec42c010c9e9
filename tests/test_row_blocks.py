"""Rows read in blocks: what is visited, what is copied, and what stays in memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, row_blocks
from fastmtl.linear_problem import Reading
from fastmtl.linear_training import _orders
from fastmtl.observations import observe

EXACT = {"alpha": 0.05, "tol": 1e-11, "max_iter": 20_000, "random_state": 0}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1 << 12)


def data(n=2000, d=8, dtype=np.float64):
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(n, d)).astype(dtype), rng.integers(5, size=n)
    weights = rng.normal(size=d) + 0.5 * rng.normal(size=(5, d))
    return X, np.einsum("ij,ij->i", X, weights[task]) + rng.normal(size=n) + task, task


def on_disk(X, path, mode="r"):
    X.tofile(path)
    return np.memmap(path, dtype=X.dtype, mode=mode, shape=X.shape)


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 1000])
def test_blocks_cover_the_rows_once(n_rows, small_blocks):
    X = np.arange(n_rows * 8.0).reshape(n_rows, 8)
    parts = list(row_blocks.in_blocks(X))
    assert np.array_equal(np.concatenate([block for _, block in parts]), X)
    assert all(np.array_equal(X[rows], block) for rows, block in parts)
    assert max(len(block) for _, block in parts) <= 64


def test_an_epoch_visits_block_after_block_and_shuffles_both(small_blocks):
    X = np.zeros((1000, 8))
    rng = np.random.default_rng(0)
    row = rng.permutation(np.repeat(np.arange(1000), 2))[:1500]

    class Problem:
        samples = row
        reading = Reading(X, row)
        steps_per_call = 50

    class Team:  # of one thread
        @staticmethod
        def regroup(order):
            return order, np.array([0, len(order)])

    def draws(seed):
        return np.concatenate([o[slice(*own[0])] for o, own in _orders(Problem, Team, seed)])

    first, again, second = (draws(seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    for order in (first, second):
        assert np.array_equal(np.sort(order), np.arange(1500))
        block = row[order] // 64
        runs = block[np.append(True, np.diff(block) != 0)]
        assert len(runs) == len(np.unique(block)) == 16
        assert (np.diff(runs) != 1).any()
        inside = row[order][block == 3]
        assert (np.diff(inside) < 0).any()


@pytest.mark.parametrize("solver", ["auto", "dual"])
@pytest.mark.parametrize("by_task", [False, True], ids=["mixed", "sorted by task"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_blocks_lead_to_the_closed_form(by_task, sparse, solver, small_blocks):
    X, y, task = data()
    if by_task:
        order = np.argsort(task, kind="stable")
        X, y, task = X[order], y[order], task[order]
    model = MultiTaskSGDRegressor(sampling="block", **EXACT).set_params(solver=solver)
    model.fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
    coef, intercept = coupled_ridge(X, y, task, model.mixing_, model.kappa_, 0.05, "coupled")
    np.testing.assert_allclose(model.coef_, coef, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, intercept, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", ["sgd", "saga"])
def test_a_memory_map_gives_the_bits_of_the_same_array_in_memory(
    dtype, solver, tmp_path, small_blocks
):
    X, y, task = data(dtype=dtype)
    mapped = on_disk(X, tmp_path / "X")
    options = {"sampling": "block", "solver": solver, "max_iter": 5, "tol": None}
    fitted = [
        MultiTaskSGDRegressor(random_state=0, **options).fit(given, y, tasks=task)
        for given in (X, mapped, mapped[:])
    ]
    for model in fitted[1:]:
        assert np.array_equal(model.coef_, fitted[0].coef_)
        assert model.coef_.dtype == dtype
    want = fitted[0].predict(X, tasks=task)
    assert np.array_equal(fitted[0].predict(mapped, tasks=task), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_memory_map_is_never_copied(dtype, tmp_path):
    X, y, task = data(dtype=dtype)
    mapped = on_disk(X, tmp_path / "X")
    observed = observe(MultiTaskSGDRegressor(), mapped, y, tasks=task)
    assert np.shares_memory(observed.X, mapped)
    part = observe(MultiTaskSGDRegressor(), mapped[100:900], y[100:900], tasks=task[100:900])
    assert np.shares_memory(part.X, mapped)
    Y = np.column_stack([y, -y])
    assert np.shares_memory(observe(MultiTaskSGDRegressor(), mapped, Y).X, mapped)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="Linux counts pages there")
def test_blocks_that_were_read_do_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1 << 20)
    X, y, task = data(n=2**17, d=32, dtype=np.float32)  # 16 MB
    mapped = on_disk(X, tmp_path / "X")

    def resident():
        lines = Path("/proc/self/smaps").read_text().split("\n")
        at = next(i for i, line in enumerate(lines) if line.endswith(str(tmp_path / "X")))
        return 1024 * next(int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))

    during = []
    MultiTaskSGDRegressor(
        sampling="block", max_iter=2, tol=None, callbacks=lambda epoch: during.append(resident())
    ).fit(mapped, y, tasks=task)
    # At most the block in use and the edges of its neighbours; the whole is 16 MB.
    assert max(during) <= 3 << 20
    assert float(np.sum(mapped)) == float(np.sum(X))
    assert resident() == X.nbytes


def test_what_was_written_to_a_private_map_is_not_lost(tmp_path, small_blocks):
    X, y, task = data()
    mapped = on_disk(np.zeros_like(X), tmp_path / "X", mode="c")
    mapped[:] = X
    MultiTaskSGDRegressor(sampling="block", max_iter=2, tol=None).fit(mapped, y, tasks=task)
    assert np.array_equal(mapped, X)
    written = on_disk(np.zeros_like(X), tmp_path / "Z", mode="r+")
    written[:] = X
    MultiTaskSGDRegressor(sampling="block", max_iter=2, tol=None).fit(written, y, tasks=task)
    assert np.array_equal(written, X)


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "X contains NaN"), (np.inf, "X contains inf")])
def test_bad_numbers_in_a_memory_map_are_found(bad, words, tmp_path, small_blocks):
    X, y, task = data()
    X[1500, 3] = bad
    with pytest.raises(ValueError, match=words):
        MultiTaskSGDRegressor().fit(on_disk(X, tmp_path / "X"), y, tasks=task)


def test_held_out_labels_and_streams_are_read_in_blocks_too(tmp_path, small_blocks):
    X, y, task = data()
    mapped = on_disk(X, tmp_path / "X")
    model = MultiTaskSGDRegressor(sampling="block", early_stopping=True, random_state=0)
    model.fit(mapped, y, tasks=task)
    plain = MultiTaskSGDRegressor(early_stopping=True, random_state=0).fit(X, y, tasks=task)
    np.testing.assert_allclose(
        model.history_[-1]["validation_loss"], plain.history_[-1]["validation_loss"], rtol=0.01
    )
    stream = MultiTaskSGDClassifier(sampling="block", random_state=0)
    for _ in range(5):
        stream.partial_fit(mapped, y > 2, tasks=task)
    assert stream.score(X, y > 2, tasks=task) > 0.85


def test_a_map_larger_than_memory_asks_for_blocks(tmp_path, monkeypatch):
    X, y, task = data()
    mapped = on_disk(X, tmp_path / "X")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.warns(UserWarning, match="sampling='block' reads it in order of blocks"):
        MultiTaskSGDRegressor(max_iter=1, tol=None).fit(mapped, y, tasks=task)
    MultiTaskSGDRegressor(max_iter=1, tol=None, sampling="block").fit(mapped, y, tasks=task)
