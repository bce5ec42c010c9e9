"""Networks that learn how their tasks are related: the heads under another coupling are the same
function with the same gradient, and planted groups are found on features that are not linear."""

import copy

import numpy as np
import pytest
from scipy import stats

from fastmtl import (
    MultiTaskNetwork,
    MultiTaskNetworkClassifier,
    MultiTaskNetworkRegressor,
    TaskCoupling,
)
from fastmtl.coupling import Factors
from fastmtl.network_state import recoupled

N_TASKS = 12
GROUP = np.arange(N_TASKS) % 2


def planted(n=60, seed=0):
    """Tasks of two groups, whose functions are linear in hidden features of the data."""
    rng = np.random.default_rng(seed)
    tasks = np.repeat(np.arange(N_TASKS), n + 100)
    X = rng.normal(size=(len(tasks), 5))
    features = np.tanh(X @ rng.normal(size=(5, 8)))
    w = rng.normal(size=8)
    W = np.stack([w, w * np.repeat([1, -1], 4)])[GROUP] + 0.1 * rng.normal(size=(N_TASKS, 8))
    clean = np.einsum("ij,ij->i", features, W[tasks])
    clean /= clean.std()
    train = np.tile(np.arange(n + 100) < n, N_TASKS)
    return X, clean, clean + 0.5 * rng.normal(size=len(clean)), tasks, train


def separation(model):
    """The least correlation within a group, and the largest across."""
    found, same = model.task_correlation_, GROUP[:, None] == GROUP
    return found[same].min(), found[~same].max()


def random_factors(rng, n_shared, n_tasks=3):
    return Factors(rng.normal(size=(n_tasks, n_shared)), rng.uniform(0.1, 2, n_tasks))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("n_shared", [0, 1, 3])
def test_recoupled_heads_are_the_same_function_with_the_same_gradient(n_shared, softmax):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(90, 4))
    tasks = np.arange(90) % 3
    before, after = random_factors(rng, 2), random_factors(rng, n_shared)
    # Momentum of 0 at a rate of next to nothing: what is remembered is the gradient.
    settings = {"solver": "momentum", "momentum": 0.0, "learning_rate_init": 1e-300}
    settings |= {"alpha": 0.0, "batch_size": 90, "max_iter": 1, "dtype": "float64"}
    settings |= {"hidden_layer_sizes": (6,), "random_state": 0}
    kind = MultiTaskNetworkClassifier if softmax else MultiTaskNetworkRegressor
    settings["warm_start"] = True
    y = rng.integers(tasks == 0, 4) if softmax else stats.zscore(rng.normal(size=90))
    model = kind(coupling=TaskCoupling.from_factors(*before), **settings).fit(X, y, tasks=tasks)
    other = copy.deepcopy(model).set_params(coupling=TaskCoupling.from_factors(*after))
    other._state = state = recoupled(model._state, after)
    np.testing.assert_allclose(other.coef_, model.coef_, atol=1e-12)
    np.testing.assert_allclose(other.intercept_, model.intercept_, atol=1e-12)
    moved = state.moments[0].copy()
    other.fit(X, y, tasks=tasks)
    assert np.abs(moved).max() > 1e-3
    np.testing.assert_allclose(other._state.moments[0], moved, atol=1e-12)

    # Of all splits, this one has the least penalty: C's own, ½ Σ K_ij w_i·w_j, by class.
    W = np.column_stack([model.coef_, model.intercept_])
    owner = np.repeat(np.arange(3), np.diff(state.head_start))
    C, want = after.covariance()[np.ix_(owner, owner)], 0.0
    for k in range(state.n_classes):
        own = state.head_class == k
        want += np.sum(W[own] * np.linalg.solve(C[np.ix_(own, own)], W[own]))
    H, intercept = state.heads()
    assert np.sum(H**2) + np.sum(intercept**2) == pytest.approx(want)


def test_planted_groups_are_found_and_help():
    scores = {}
    for seed in (1, 2):
        X, clean, y, tasks, train = planted(seed=seed)
        for coupling in ("mean", "independent", "learn"):
            model = MultiTaskNetworkRegressor(
                coupling=coupling, alpha=1e-2, learning_rate_init=3e-3, max_iter=20, random_state=0
            )
            model.fit(X[train], y[train], tasks=tasks[train])
            score = model.score(X[~train], clean[~train], tasks=tasks[~train])
            scores.setdefault(coupling, []).append(score)
        within, across = separation(model)
        assert within > across + 0.1
        C = model.task_covariance_
        want = model.mixing_ @ model.mixing_.T + np.diag(model.kappa_)
        np.testing.assert_allclose(C, want)
        assert np.diag(C).mean() == pytest.approx(1)
    best = max(np.mean(scores["mean"]), np.mean(scores["independent"]))
    assert np.mean(scores["learn"]) > best + 0.03


@pytest.mark.parametrize("cuts", [[0.0], [-0.5, 0.5]])
def test_planted_groups_of_classifiers_are_found(cuts):
    X, clean, _, tasks, train = planted(seed=1)
    labels = np.digitize(clean, cuts)
    scores = []
    for coupling in ("mean", TaskCoupling.learn(rank=2)):
        model = MultiTaskNetworkClassifier(
            coupling=coupling, alpha=1e-2, max_iter=15, learning_rate_init=3e-3, random_state=0
        ).fit(X[train], labels[train], tasks=tasks[train])
        scores.append(model.score(X[~train], labels[~train], tasks=tasks[~train]))
    within, across = separation(model)
    assert within > across + 0.1
    assert scores[1] > scores[0] - 0.01


def test_learned_relations_serve_later_calls_and_new_tasks():
    X, _, y, tasks, train = planted()
    model = MultiTaskNetworkRegressor(coupling="learn", warm_start=True, max_iter=5, random_state=0)
    model.fit(X[train], y[train], tasks=tasks[train])
    loss, C = model.history_[-1]["loss"], model.task_covariance_
    few = tasks < 4
    model.partial_fit(X[few], y[few], tasks=tasks[few])
    np.testing.assert_array_equal(model.task_covariance_, C)
    new = np.where(tasks == 1, 99, tasks)
    model.partial_fit(X[train], y[train], tasks=new[train])
    assert model.n_tasks_ == N_TASKS + 1
    np.testing.assert_allclose(model.mixing_[-1], model.mixing_[:-1].mean(axis=0))
    np.testing.assert_array_equal(model.task_covariance_[:N_TASKS, :N_TASKS], C)
    assert model.history_[-1]["loss"] < loss + 0.1


def test_early_stopping_returns_to_the_best_epochs_relations_too():
    X, _, y, tasks, train = planted()
    settings = {"coupling": "learn", "early_stopping": True, "learning_rate_init": 0.02}
    settings |= {"n_iter_no_change": 40, "max_iter": 41, "random_state": 0}
    model = MultiTaskNetworkRegressor(**settings).fit(X[train], y[train], tasks=tasks[train])
    best = 1 + int(np.argmin([entry["validation_loss"] for entry in model.history_]))
    assert 4 < best < 41
    until = model.get_params() | {"max_iter": best}
    again = MultiTaskNetworkRegressor(**until).fit(X[train], y[train], tasks=tasks[train])
    np.testing.assert_array_equal(again.mixing_, model.mixing_)
    np.testing.assert_array_equal(again.coef_, model.coef_)


def test_a_short_fit_learns_at_its_end_and_rank_is_kept():
    X, _, y, tasks, train = planted()
    model = MultiTaskNetworkRegressor(
        coupling=TaskCoupling.learn(rank=2), max_iter=2, dtype="float64", random_state=0
    ).fit(X[train], y[train], tasks=tasks[train])
    assert model.mixing_.shape == (N_TASKS, 2)
    plain = TaskCoupling.from_factors(np.full((N_TASKS, 1), np.sqrt(0.5)), np.full(N_TASKS, 0.5))
    given = model.get_params() | {"coupling": plain}
    same = MultiTaskNetworkRegressor(**given).fit(X[train], y[train], tasks=tasks[train])
    np.testing.assert_allclose(same.coef_, model.coef_, atol=1e-10)


def test_what_cannot_be_learned_is_said():
    X, _, y, tasks, _ = planted()
    Y = np.column_stack([y, y > 0])
    mixed = MultiTaskNetwork(loss=["squared_error", "log_loss"], coupling="learn")
    with pytest.raises(ValueError, match=r"losses of the tasks are of 2 kinds \(log, squared\)"):
        mixed.fit(X, Y)
    MultiTaskNetwork(loss="log_loss", coupling="learn", max_iter=1).fit(X, (Y > 0) * 1.0)
    for setting in ({"scale": "evidence"}, {"feature_covariance": "diagonal"}):
        model = MultiTaskNetworkRegressor(coupling=TaskCoupling.learn(**setting))
        with pytest.raises(ValueError, match=r"networks take TaskCoupling.learn with rank alone"):
            model.fit(X, y, tasks=tasks)
