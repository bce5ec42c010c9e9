"""Penalties, steps and sampling of the linear models, against peers and their own promises."""

import numpy as np
import pytest
import scipy.sparse as sp
from closed_form import coupled_ridge
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor, TaskCoupling
from fastmtl.linear_problem import LOSSES, PLAIN
from fastmtl.reference.linear_sgd import point_losses

EXACT = {"tol": 1e-12, "max_iter": 50_000, "random_state": 0}
COUPLINGS = {
    "mean": TaskCoupling.mean(0.3),
    "independent": "independent",
    "pooled": "pooled",
    "covariance": TaskCoupling.from_covariance(
        [[2.0, 1.0, -0.5], [1.0, 1.5, 0.0], [-0.5, 0.0, 1.0]]
    ),
}


def regression(seed=0, n=150, d=6):
    rng = np.random.default_rng(seed)
    task = rng.integers(3, size=n)
    X = rng.normal(size=(n, d))
    weights = rng.normal(size=d) * (np.arange(d) < 3) + 0.5 * rng.normal(size=(3, d)) * (
        rng.random((3, d)) < 0.3
    )
    y = np.einsum("ij,ij->i", X, weights[task]) + 0.5 * task + 0.5 * rng.normal(size=n)
    return X, y, task


def whitened(X, task, mixing, kappa):
    """Features once per shared vector and once per task, scaled so that the penalty is plain."""
    shared = [mixing[task, r, None] * X for r in range(mixing.shape[1])]
    own = [np.where((task == t)[:, None], np.sqrt(kappa[t]) * X, 0.0) for t in range(len(kappa))]
    return np.hstack([*shared, *own])


def own_coef(model):
    return model.task_coef_.toarray() if sp.issparse(model.task_coef_) else model.task_coef_


def whitened_coef(model):
    root = np.sqrt(np.where(model.kappa_ > 0, model.kappa_, 1.0))[:, None]
    return np.concatenate([model.shared_coef_.ravel(), (own_coef(model) / root).ravel()])


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("penalty", ["l1", "elasticnet"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_saga_is_the_lasso_and_the_elastic_net_on_whitened_features(coupling, penalty, sparse):
    X, y, task = regression()
    if sparse:
        X[np.abs(X) < 0.4] = 0.0
    alpha, ratio = 0.05, 0.6 if penalty == "elasticnet" else 1.0
    model = MultiTaskSGDRegressor(
        alpha=alpha,
        shared_penalty=penalty,
        task_penalty=penalty,
        l1_ratio=0.6,
        coupling=COUPLINGS[coupling],
        task_intercept="shared",
        **EXACT,
    ).fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
    features = whitened(X, task, model.mixing_, model.kappa_)
    peer = ElasticNet(alpha=alpha, l1_ratio=ratio, tol=1e-14, max_iter=100_000).fit(features, y)
    if penalty == "l1":
        plain = Lasso(alpha=alpha, tol=1e-14, max_iter=100_000).fit(features, y)
        np.testing.assert_allclose(plain.coef_, peer.coef_, atol=1e-9)
    np.testing.assert_allclose(whitened_coef(model), peer.coef_, rtol=0, atol=1e-7)
    np.testing.assert_allclose(model.intercept_, peer.intercept_, atol=1e-7)
    assert np.array_equal(whitened_coef(model) == 0, peer.coef_ == 0)
    assert 3 < np.count_nonzero(peer.coef_ == 0) < peer.coef_.size
    residual = y - peer.predict(features)
    penalty = ratio * np.abs(peer.coef_).sum() + 0.5 * (1 - ratio) * np.sum(peer.coef_**2)
    assert model.history_[-1]["objective"] == pytest.approx(
        0.5 * np.mean(residual**2) + alpha * penalty, rel=1e-9
    )


def test_saga_is_logistic_regression_with_l1():
    X, y, task = regression()
    y, alpha = np.where(y > 0, 1, 0), 0.02
    for data in (X, sp.csr_matrix(X)):
        model = MultiTaskSGDClassifier(
            alpha=alpha,
            shared_penalty="l1",
            task_penalty="l1",
            coupling=COUPLINGS["mean"],
            fit_intercept=False,
            **EXACT,
        ).fit(data, y, tasks=task)
        peer = LogisticRegression(
            l1_ratio=1.0,
            solver="saga",
            C=1 / (alpha * len(y)),
            fit_intercept=False,
            tol=1e-12,
            max_iter=100_000,
            random_state=0,
        ).fit(whitened(X, task, model.mixing_, model.kappa_), y)
        np.testing.assert_allclose(whitened_coef(model), peer.coef_[0], atol=1e-6)
        assert np.array_equal(whitened_coef(model) == 0, peer.coef_[0] == 0)
        assert (peer.coef_ == 0).any()


def subgradient_lengths(model, X, y, task):
    """How far the optimality conditions are from holding, coordinate by coordinate."""
    scores = np.einsum("ij,ij->i", X, model.coef_[task]) + model.intercept_[task]
    residual = (scores - y) / len(y)
    kinds = {"l2": (0.0, 1.0), "l1": (1.0, 0.0), "elasticnet": (0.15, 0.85), None: (0.0, 0.0)}
    root = np.sqrt(model.kappa_)[:, None]
    by_task = np.stack([X[task == t].T @ residual[task == t] for t in range(3)])
    for gradient, u, name in [
        (model.mixing_.T @ by_task, model.shared_coef_, model.shared_penalty),
        (root * by_task, own_coef(model) / root, model.task_penalty),
    ]:
        l1, l2 = (model.alpha * share for share in kinds[name])
        smooth = gradient + l2 * u
        off = np.where(u != 0, smooth + l1 * np.sign(u), np.maximum(np.abs(smooth) - l1, 0.0))
        yield np.abs(off).max()


@pytest.mark.parametrize("shared", ["l2", "l1", "elasticnet", None])
@pytest.mark.parametrize("task_penalty", ["l2", "l1", "elasticnet"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_each_part_has_its_own_penalty(shared, task_penalty, sparse):
    X, y, task = regression()
    if sparse:
        X[np.abs(X) < 0.4] = 0.0
    model = MultiTaskSGDRegressor(
        alpha=0.05,
        shared_penalty=shared,
        task_penalty=task_penalty,
        coupling=COUPLINGS["mean"],
        **EXACT,
    ).fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
    assert max(subgradient_lengths(model, X, y, task)) < 1e-9


def test_no_penalty_at_all_is_least_squares():
    X, y, task = regression()
    model = MultiTaskSGDRegressor(shared_penalty=None, task_penalty=None, **EXACT)
    model.fit(X, y, tasks=task)
    for t in range(3):
        design = np.column_stack([X[task == t], np.ones(np.sum(task == t))])
        want = np.linalg.lstsq(design, y[task == t], rcond=None)[0]
        np.testing.assert_allclose(model.coef_[t], want[:-1], atol=1e-7)
        np.testing.assert_allclose(model.intercept_[t], want[-1], atol=1e-7)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_sgd_with_l1_has_exact_zeros_among_those_of_the_lasso(sparse, n_threads):
    X, y, task = regression(n=600)
    if sparse:
        X[np.abs(X) < 0.4] = 0.0
    settings = {"alpha": 0.1, "shared_penalty": "l1", "task_penalty": "l1", "random_state": 0}
    data = sp.csr_matrix(X) if sparse else X
    exact = MultiTaskSGDRegressor(**{**settings, **EXACT}).fit(data, y, tasks=task)
    model = MultiTaskSGDRegressor(
        solver="sgd", max_iter=80, tol=None, n_threads=n_threads, **settings
    ).fit(data, y, tasks=task)
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=0.1)
    zero = own_coef(exact) == 0
    assert zero.mean() > 0.4
    # The noise of the last steps moves some off zero again; that is what SAGA is for.
    assert (own_coef(model)[zero] == 0).any()
    assert not (model.shared_coef_[np.abs(exact.shared_coef_) > 0.1] == 0).any()


def test_l1_on_softmax_and_float32():
    X, _, task = regression(n=300)
    X = X.astype(np.float32)
    y = np.argmax(X[:, :3] + 0.3 * task[:, None] * X[:, 1:4], axis=1)
    settings = {"shared_penalty": "l1", "task_penalty": "elasticnet", "alpha": 0.01}
    dense = MultiTaskSGDClassifier(tol=1e-6, max_iter=5000, random_state=0, **settings)
    dense.fit(X, y, tasks=task)
    csr = MultiTaskSGDClassifier(tol=1e-6, max_iter=5000, random_state=0, **settings)
    csr.fit(sp.csr_matrix(X), y, tasks=task)
    assert dense.shared_coef_.dtype == np.float32
    assert (dense.shared_coef_ == 0).mean() > 0.2
    np.testing.assert_allclose(csr.shared_coef_, dense.shared_coef_, atol=1e-3)
    assert dense.score(X, y, tasks=task) > 0.9


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize(
    "steps",
    [
        {"learning_rate": "adaptive"},
        {"learning_rate": "adagrad", "eta0": 0.5},
        {"learning_rate": "constant", "eta0": 0.02, "average": True},
        {"learning_rate": "invscaling", "eta0": 0.05, "average": 600},
        {"clip_gradient": 20.0},
    ],
    ids=lambda steps: "-".join(map(str, steps.values())),
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_every_kind_of_step_comes_near_the_closed_form(coupling, steps, sparse):
    X, y, task = regression(n=300)
    if sparse:
        X[np.abs(X) < 0.4] = 0.0
    model = MultiTaskSGDRegressor(
        solver="sgd",
        alpha=0.05,
        coupling=COUPLINGS[coupling],
        task_intercept="shared",
        max_iter=150,
        tol=None,
        random_state=0,
        **steps,
    ).fit(sp.csr_matrix(X) if sparse else X, y, tasks=task)
    coef, intercept = coupled_ridge(X, y, task, model.mixing_, model.kappa_, 0.05, "shared")
    np.testing.assert_allclose(model.coef_, coef, atol=0.05)
    np.testing.assert_allclose(model.intercept_, intercept, atol=0.05)


def test_the_average_is_the_mean_of_what_the_steps_left():
    X, y, task = regression(n=40)
    order_of = {"solver": "sgd", "learning_rate": "constant", "eta0": 0.05, "tol": None}
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-5)):
        for data in (X.astype(dtype), sp.csr_matrix(X.astype(dtype))):
            averaged = MultiTaskSGDRegressor(average=True, random_state=0, **order_of)
            single = MultiTaskSGDRegressor(random_state=0, **order_of)
            visited = []
            for i in range(len(y)):
                row = slice(i, i + 1)
                averaged.partial_fit(data[row], y[row], tasks=task[row])
                single.partial_fit(data[row], y[row], tasks=task[row])
                visited.append({t: single.coef_[k] for k, t in enumerate(single.tasks_.tolist())})
            last = averaged.coef_
            shared = single.shared_coef_
            for k, t in enumerate(averaged.tasks_.tolist()):
                # Before its first sample a task has the shared part alone.
                seen = [v[t] for v in visited if t in v]
                if len(seen) == len(visited):
                    np.testing.assert_allclose(last[k], np.mean(seen, axis=0), atol=tolerance)
            assert shared.shape == averaged.shared_coef_.shape


def test_an_average_goes_on_in_partial_fit_and_warm_start():
    X, y, task = regression(n=100)
    settings = {"solver": "sgd", "average": True, "random_state": 0, "tol": None, "max_iter": 1}
    model = MultiTaskSGDRegressor(**settings)
    for _ in range(3):
        model.partial_fit(X, y, tasks=task)
    assert model._state.running.steps == 300
    assert not np.array_equal(model._state.running.shared, model._state.shared)
    warm = MultiTaskSGDRegressor(warm_start=True, **settings).fit(X, y, tasks=task)
    before = warm._state.running.drift[0].copy()
    warm.fit(X, y, tasks=task)
    assert not np.array_equal(warm._state.running.drift[0], before)
    plain = warm.set_params(average=False).fit(X, y, tasks=task)
    assert plain._state.running is None


def test_early_stopping_judges_the_average():
    X, y, task = regression(n=300)
    model = MultiTaskSGDRegressor(
        solver="sgd", average=True, early_stopping=True, random_state=0, max_iter=50
    ).fit(X, y, tasks=task)
    best = min(entry["validation_loss"] for entry in model.history_)
    assert model.history_[model.best_iter_ - 1]["validation_loss"] == best


def test_adaptive_lowers_its_rate_until_it_is_tiny():
    X, y, task = regression(n=300)
    model = MultiTaskSGDRegressor(
        solver="sgd", alpha=0.05, learning_rate="adaptive", random_state=0, n_iter_no_change=3
    ).fit(X, y, tasks=task)
    exact = MultiTaskSGDRegressor(alpha=0.05, **EXACT).fit(X, y, tasks=task)
    assert 9 * 3 <= model.n_iter_ < 300  # nine fifths make a millionth
    np.testing.assert_allclose(model.coef_, exact.coef_, atol=0.02)


def test_a_clipped_step_is_no_longer_than_asked():
    X, y, task = regression(n=50)
    X, y = X * 100, y + 1e6
    for coupling in ("mean", "independent", "pooled"):
        model = MultiTaskSGDRegressor(
            solver="sgd",
            coupling=coupling,
            learning_rate="constant",
            eta0=0.5,
            clip_gradient=0.1,
            fit_intercept=False,
            alpha=0.0,
            tol=None,
        ).partial_fit(X[:1], y[:1], tasks=[0])
        np.testing.assert_allclose(np.linalg.norm(whitened_coef(model)), 0.05, rtol=1e-9)
    model = MultiTaskSGDRegressor(
        loss="poisson",
        solver="sgd",
        learning_rate="constant",
        eta0=1.0,
        clip_gradient=1.0,
        max_iter=3,
        tol=None,
        random_state=0,
    ).fit(X, np.ones(50), tasks=task)
    assert np.isfinite(model.coef_).all()  # exp overflows on the way


SCALES = 10.0 ** np.array([-6, -3, 0, 3, 6])


@pytest.mark.parametrize("loss", [*MultiTaskSGDRegressor._losses, *MultiTaskSGDClassifier._losses])
@pytest.mark.parametrize("solver", ["sgd", "auto"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_the_defaults_do_not_diverge_on_features_of_all_scales(loss, solver, sparse):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 5)) * SCALES
    task = rng.integers(3, size=300)
    y = X @ (rng.normal(size=5) / SCALES) + rng.normal(size=300)
    classify = loss in MultiTaskSGDClassifier._losses
    if loss == "poisson":
        y = rng.poisson(np.exp(y / 3))
    Estimator = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    model = Estimator(loss=loss, solver=solver, max_iter=20, tol=None, random_state=0)
    model.fit(sp.csr_matrix(X) if sparse else X, y > 0 if classify else y, tasks=task)
    objectives = [entry["objective"] for entry in model.history_]
    assert np.isfinite(model.coef_).all()
    start = np.zeros(300)
    value, gradient = np.empty(300), np.empty(300)
    target = np.where(y > 0, 1.0, -1.0) if classify else y.astype(float)
    parameter = 0.5 if loss == "quantile" else 0.1 if not classify else 1.0
    point_losses(LOSSES[loss][0], parameter, target, start, value, gradient)
    # The least mean squares of the largest feature keep some of its noise, at steps this long.
    assert max(objectives) < 2.5 * value.mean()
    assert objectives[-1] < 1.5 * value.mean()


def test_adagrad_does_not_mind_scales():
    X, y, task = regression(n=300)
    settings = {
        "solver": "sgd",
        "learning_rate": "adagrad",
        "eta0": 0.5,
        "alpha": 0.0,
        "max_iter": 100,
        "tol": None,
        "random_state": 0,
        "task_intercept": "shared",
    }
    plain = MultiTaskSGDRegressor(**settings).fit(X, y, tasks=task)
    scales = 2.0 ** np.arange(-3, 3)
    scaled = MultiTaskSGDRegressor(**settings).fit(X * scales, y, tasks=task)
    assert plain.score(X, y, tasks=task) > 0.8
    assert scaled.score(X * scales, y, tasks=task) > 0.75


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "csr"])
def test_all_of_it_at_once_is_the_same_for_a_seed_and_number_of_threads(sparse):
    X, y, _ = regression(n=200)
    task = np.arange(200) % 7
    data = sp.csr_matrix(X) if sparse else X
    settings = {
        "solver": "sgd",
        "learning_rate": "adagrad",
        "average": 50,
        "clip_gradient": 5.0,
        "shared_penalty": "elasticnet",
        "task_penalty": "l1",
        "max_iter": 6,
        "tol": None,
    }
    found = {}
    for n_threads in (1, 2):
        for _ in range(2):
            model = MultiTaskSGDRegressor(n_threads=n_threads, random_state=3, **settings)
            found.setdefault(n_threads, []).append(model.fit(data, y, tasks=task).coef_)
        assert np.array_equal(*found[n_threads])
    np.testing.assert_allclose(found[1][0], found[2][0], atol=0.3)


def drawn(model, X, y, task, epochs=30):
    """How often each sample is drawn, from the orders of the epochs themselves."""
    from fastmtl.linear_problem import describe
    from fastmtl.linear_threads import Team
    from fastmtl.linear_training import _orders

    observations = model._observe(X, y, task, None, reset=True)
    classes = model._encode(observations)
    relations, _ = model._relate((observations, classes))
    state, factors = model._start((observations, classes), False, relations)
    problem = describe(model, observations, classes, state, factors, "sgd")
    counts = np.zeros(len(y))
    for seed in range(epochs):
        for order, _ in _orders(problem, Team(problem, 1), seed):
            counts += np.bincount(order, minlength=len(y))
    return counts / counts.sum(), problem, classes


def test_balanced_draws_tasks_evenly_and_then_classes_evenly():
    rng = np.random.default_rng(0)
    task = np.repeat([0, 1, 2], [1000, 100, 20])
    y = (rng.random(1120) < np.array([0.1, 0.5, 0.2])[task]).astype(int)
    y[-2:] = 1
    X = rng.normal(size=(1120, 2))
    model = MultiTaskSGDClassifier(sampling="balanced", solver="sgd")
    often, problem, classes = drawn(model, X, y, task)
    code, of_task = classes.code, np.sort(task)
    for t in range(3):
        for c in (-1, 1):
            share = often[(of_task == t) & (code == c)]
            # 33,600 draws, each in the group with probability 1/6: a deviation of 0.002
            assert share.sum() == pytest.approx(1 / 6, abs=0.008)
            assert problem.probability[(of_task == t) & (code == c)].sum() == pytest.approx(1 / 6)
    # Unbiased: a draw's chance times its weight is the sample's share of the objective.
    share = problem.probability * problem.samples["weight"]
    np.testing.assert_allclose(share, 1 / 1120, rtol=1e-12)


def test_balanced_draws_tasks_evenly_for_regression_and_misses_no_class_of_a_task():
    task = np.repeat([0, 1], [500, 20])
    X, y = np.random.default_rng(0).normal(size=(520, 2)), np.zeros(520)
    often, problem, _ = drawn(MultiTaskSGDRegressor(sampling="balanced"), X, y, task)
    assert problem.groups is None
    assert often[task == 1].sum() == pytest.approx(0.5, abs=0.02)
    # A task with one class only draws it alone.
    y = np.where(task == 1, 1, np.arange(520) % 2)
    often, _, classes = drawn(MultiTaskSGDClassifier(sampling="balanced"), X, y, task)
    assert often[500:].sum() == pytest.approx(0.5, abs=0.02)
    assert often[:500][classes.code[:500] == 1].sum() == pytest.approx(0.25, abs=0.02)


def test_balanced_has_the_same_minimum_and_the_same_bits_for_a_seed():
    X, y, task = regression(n=900)
    y = y > 0.8
    keep = (task == 0) | (np.arange(900) % 4 == 0)
    X, y, task = X[keep], y[keep], task[keep]
    exact = MultiTaskSGDClassifier(alpha=0.05, **EXACT).fit(X, y, tasks=task)
    for data in (X, sp.csr_matrix(X)):
        fitted = [
            MultiTaskSGDClassifier(
                alpha=0.05, sampling="balanced", max_iter=200, tol=None, random_state=0
            ).fit(data, y, tasks=task)
            for _ in range(2)
        ]
        assert np.array_equal(fitted[0].coef_, fitted[1].coef_)
        np.testing.assert_allclose(fitted[0].coef_, exact.coef_, atol=0.05)
    judged = MultiTaskSGDClassifier(
        alpha=0.05, sampling="balanced", tol=1e-3, random_state=0, task_penalty="l1"
    ).fit(X, y, tasks=task)
    scores = judged.decision_function(X, tasks=task)
    loss = np.logaddexp(0, -np.where(y, 1, -1) * scores).mean()
    shared, own = judged._state.shared[..., [*range(6), -1]], judged._state.specific
    penalty = 0.5 * np.sum(shared**2) + np.abs(own).sum()
    assert judged.history_[-1]["objective"] == pytest.approx(loss + 0.05 * penalty, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["l1", "l2", "elasticnet", None]),
    st.sampled_from(["l1", "l2", "elasticnet"]),
    st.integers(1, 20),
    st.floats(1e-3, 10.0),
    st.integers(0, 99),
)
def test_no_penalty_is_too_strong_and_the_objective_never_ends_above_its_start(
    shared, own, d, alpha, seed
):
    rng = np.random.default_rng(seed)
    X, y, task = rng.normal(size=(30, d)), rng.normal(size=30), rng.integers(2, size=30)
    model = MultiTaskSGDRegressor(
        alpha=alpha, shared_penalty=shared, task_penalty=own, max_iter=300, tol=None
    ).fit(X, y, tasks=task)
    assert model.history_[-1]["objective"] <= 0.5 * np.var(y) + 1e-9
    if alpha > 5 and "l1" in (shared,) and own == "l1":
        assert not model.shared_coef_.any() and not model.task_coef_.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shared_penalty": "l3"}, "shared_penalty is 'l3'; pass one of 'l2', 'l1'"),
        ({"task_penalty": 1.0}, "task_penalty is 1.0"),
        ({"l1_ratio": 1.5}, "l1_ratio is 1.5"),
        ({"l1_ratio": None}, "l1_ratio is None"),
        ({"average": 0}, "average is 0; pass an integer >= 1"),
        ({"average": "yes"}, "average is 'yes'"),
        ({"clip_gradient": 0.0}, "clip_gradient is 0.0; pass a finite number > 0 or None"),
        ({"sampling": "even"}, "sampling is 'even'"),
        ({"learning_rate": "adam"}, "learning_rate is 'adam'.*'adaptive', 'adagrad'"),
    ],
)
def test_bad_settings_are_named(change, words):
    for Estimator in (MultiTaskSGDRegressor, MultiTaskSGDClassifier):
        with pytest.raises(ValueError, match=words):
            Estimator(**change).fit(np.eye(2), [0, 1], tasks=[0, 1])


def test_plain_settings_take_the_plain_loops(monkeypatch):
    from fastmtl._core import linear_sgd

    def refuse(*arguments):
        raise AssertionError("the general loop was called")

    for name in ("sgd_general_dense", "saga_general_dense"):
        monkeypatch.setattr(linear_sgd, name, refuse)
    X, y, task = regression()
    for solver in ("sgd", "saga"):
        MultiTaskSGDRegressor(solver=solver, max_iter=2, tol=None).fit(X, y, tasks=task)
        with pytest.raises(AssertionError):
            MultiTaskSGDRegressor(solver=solver, task_penalty="l1", max_iter=2, tol=None).fit(
                X, y, tasks=task
            )
    assert PLAIN == (0.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "loss",
    [
        "squared_error",
        "huber",
        "epsilon_insensitive",
        "quantile",
        "squared_epsilon_insensitive",
        "poisson",
        "hinge",
        "squared_hinge",
        "modified_huber",
        "log_loss",
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_default_rate_learns_from_unscaled_data(loss, dtype):
    rng = np.random.default_rng(0)
    n, d, n_tasks = 3000, 12, 6
    Z, task = rng.normal(size=(n, d)), rng.integers(n_tasks, size=n)
    weights = rng.normal(size=d) + 0.3 * rng.normal(size=(n_tasks, d))
    score = np.einsum("ij,ij->i", Z, weights[task])
    X = (Z * np.logspace(-3, 4, d)).astype(dtype)
    if loss in ("hinge", "squared_hinge", "modified_huber", "log_loss"):
        model, y, chance = MultiTaskSGDClassifier, score > 0, 0.6
    else:
        model, chance = MultiTaskSGDRegressor, 0.15
        y = rng.poisson(np.exp(0.3 * score + 3)) if loss == "poisson" else 1e6 * score
    for form in (X, sp.csr_matrix(X)):
        fitted = model(loss=loss, solver="sgd", max_iter=30, tol=None, random_state=0)
        fitted.fit(form, y, tasks=task)
        # The small columns are out of reach of one rate; the large ones are a quarter of the sum.
        assert fitted.score(form, y, tasks=task) > chance
