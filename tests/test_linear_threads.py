"""How threads share the work: whole tasks, and parts of a task too large for one."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.linear_threads import Team


def giant(seed=0, n=600, d=4):
    """Nine rows of ten are of the middle one of three tasks."""
    rng = np.random.default_rng(seed)
    task = rng.choice(3, p=[0.05, 0.9, 0.05], size=n)
    X = rng.normal(size=(n, d))
    weights = rng.normal(size=d) + rng.normal(size=(3, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + 0.3 * rng.normal(size=n) + task
    return X, y, task


def team_of(counts, n_threads):
    task = np.repeat(np.arange(len(counts)), counts)
    samples = np.zeros(len(task), dtype=[("task", np.int32), ("row", np.int64)])
    samples["task"] = task
    problem = SimpleNamespace(
        samples=samples,
        dense=True,
        kappa=np.ones(len(counts)),
        task_start=np.concatenate([[0], np.cumsum(counts)]),
        present=np.flatnonzero(counts),
        probability=np.ones(len(task)),
        arguments=(
            (np.ones((len(counts), 1)), np.ones(len(counts))),
            (2 * np.arange(len(counts) + 1), np.tile(np.arange(2, dtype=np.int32), len(counts))),
            (0, 0.0, 1.0, 0),
            (0.1, np.ones(len(counts)), np.ones(2), 2, np.full(len(counts), 0.1)),
        ),
    )
    return Team(problem, n_threads)


def test_threads_take_whole_tasks_where_these_are_small():
    team = team_of([10, 0, 11, 9, 10], 2)
    assert team.cuts.tolist() == [0, 21, 40]
    assert team.heads is None and len(team.split[0]) == 1


def test_a_task_too_large_for_a_thread_is_split_evenly_with_heads_for_each_part():
    team = team_of([10, 70, 20], 4)
    assert team.cuts.tolist() == [0, 25, 50, 75, 100]
    assert team.tasks.tolist() == [0, 1, 2, 1, 1, 1]
    drawn = [np.bincount(team.samples["task"][a:b], minlength=6) for a, b in pairwise(team.cuts)]
    assert np.array_equal(
        drawn, [[10, 15, 0, 0, 0, 0], [0, 0, 0, 25, 0, 0], [0, 0, 0, 0, 25, 0], [0, 0, 20, 0, 0, 5]]
    )
    start, heads, share = team.split
    assert start.tolist() == [0, 4, 8]
    assert heads.tolist() == [2, 6, 8, 10, 3, 7, 9, 11]
    np.testing.assert_allclose(share[:4], np.array([15, 25, 25, 5]) / 70)
    (_, _), (head_start, head_class), _, _ = team.arguments
    assert head_start.tolist() == list(range(0, 13, 2)) and head_class.tolist() == [0, 1] * 6
    assert team.with_copies(np.arange(6)[:, None])[:, 0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        5,
        2,
        3,
        2,
        3,
        2,
        3,
    ]


def test_more_threads_than_samples_are_not_too_many():
    assert team_of([2, 1], 8).cuts.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "steps",
    [{}, {"learning_rate": "adagrad", "eta0": 0.2}, {"average": 3000}],
    ids=["plain", "adagrad", "average"],
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("coupling", ["mean", "pooled", "independent"])
def test_a_split_task_comes_near_the_closed_form_with_the_same_bits(coupling, sparse, steps):
    X, y, task = giant()
    for n_threads in (2, 3):
        first, again = (
            MultiTaskSGDRegressor(
                solver="sgd",
                alpha=0.1,
                coupling=coupling,
                task_intercept="free",
                max_iter=100,
                tol=None,
                random_state=0,
                n_threads=n_threads,
                **steps,
            ).fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
            for _ in range(2)
        )
        assert np.array_equal(first.coef_, again.coef_)
        coef, intercept = coupled_ridge(X, y, task, first.mixing_, first.kappa_, 0.1, "free")
        np.testing.assert_allclose(first.coef_, coef, atol=0.05)
        np.testing.assert_allclose(first.intercept_, intercept, atol=0.05)


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("sampling", ["uniform", "task", "balanced"])
def test_a_split_task_of_several_classes_comes_to_the_least_objective(sampling):
    X, y, task = giant()
    label = np.digitize(y, np.quantile(y, [0.3, 0.7]))

    def objective(**settings):
        model = MultiTaskSGDClassifier(alpha=0.05, random_state=0, **settings)
        return model.fit(X, label, tasks=task).history_[-1]["objective"]

    least = objective(solver="saga", tol=1e-8, max_iter=500)
    reached = objective(sampling=sampling, solver="sgd", n_threads=2, tol=0, max_iter=40)
    assert least < reached < 1.01 * least
