"""The networks as estimators: forms of data, training, errors, what is stored."""

import pickle
import signal
import threading
import time
import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from twins import network as cases

from fastmtl import (
    MultiTaskNetwork,
    MultiTaskNetworkClassifier,
    MultiTaskNetworkRegressor,
    MultiTaskSGDRegressor,
    TaskCoupling,
)
from fastmtl._core import network as core
from fastmtl.layers import (
    GRU,
    LSTM,
    RNN,
    Concat,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    LayerNorm,
    MaxPool2D,
    blocks,
    compile_trunk,
    initial_parameters,
)
from fastmtl.reference import network as reference


def small(**settings):
    settings = {"hidden_layer_sizes": (8,), "max_iter": 5, "random_state": 0, **settings}
    return MultiTaskNetworkRegressor(**settings)


def regression(n=120, d=4, n_tasks=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    tasks = rng.integers(n_tasks, size=n)
    y = np.sin(X[:, 0]) + 0.3 * tasks * X[:, 1]
    return X, y, tasks


@pytest.mark.parametrize(("name", "rows", "lengths"), list(cases.trunks()))
def test_gradients_are_those_of_finite_differences(name, rows, lengths):
    rng = np.random.default_rng(0)
    arguments = cases.train_case(rng, np.dtype(np.float64), rows, lengths, 0, 20, rate=0)
    arguments["order"] = np.arange(11)
    core.network_train(**arguments)
    gradient, start = arguments["gradient"].copy(), arguments["parameters"].copy()

    def objective(position, shift):
        arguments["parameters"] = start.copy()
        arguments["parameters"][position] += shift
        arguments["task_loss"] = np.zeros(4)
        core.network_train(**arguments)
        return arguments["task_loss"].sum() / 11

    for i in rng.choice(len(gradient), min(40, len(gradient)), replace=False):
        slope = (objective(i, 1e-5) - objective(i, -1e-5)) / 2e-5
        np.testing.assert_allclose(gradient[i], slope, atol=1e-8, err_msg=name)


def test_the_three_forms_of_equal_data_fit_equally():
    X, y, tasks = regression()
    order = np.argsort(tasks, kind="stable")
    X, y, tasks = X[order], y[order], tasks[order]
    long = small().fit(X, y, tasks=tasks)
    Y = np.full((len(y), 3), np.nan)
    Y[np.arange(len(y)), tasks] = y
    matrix = small().fit(X, Y)
    parts = small().fit([X[tasks == t] for t in range(3)], [y[tasks == t] for t in range(3)])
    want = long.predict(X, tasks=tasks)
    for other in (matrix, parts):
        np.testing.assert_array_equal(other.coef_, long.coef_)
    got = matrix.predict(X)[np.arange(len(y)), tasks]
    np.testing.assert_allclose(got, want, atol=1e-6)
    got = parts.predict([X[tasks == t] for t in range(3)])
    np.testing.assert_allclose(np.concatenate(got), want, atol=1e-6)


def test_task_column_stands_for_tasks():
    X, y, tasks = regression()
    with_column = np.column_stack([X, tasks])
    model = small(task_column=4).fit(with_column, y)
    want = small().fit(X, y, tasks=tasks.astype(float))
    np.testing.assert_array_equal(model.predict(with_column), want.predict(X, tasks=tasks))
    assert model.transform(with_column).shape == (120, 8)
    search = GridSearchCV(small(task_column=4), {"alpha": [0.0, 0.1]}, cv=2).fit(with_column, y)
    assert search.best_params_["alpha"] in (0.0, 0.1)


@pytest.mark.parametrize("coupling", ["mean", "independent", "pooled"])
def test_without_a_trunk_it_is_the_linear_model(coupling):
    X, y, tasks = regression(n=200)
    if coupling == "mean":
        coupling = TaskCoupling.mean(0.5)
    y -= y.mean()  # so that the linear model shrinks its intercepts to where networks shrink theirs
    X = np.column_stack([X, np.ones(len(X))])
    network = MultiTaskNetworkRegressor(
        trunk=[],
        coupling=coupling,
        alpha=0.05,
        solver="momentum",
        learning_rate_init=0.05,
        batch_size=200,
        max_iter=4000,
        dtype="float64",
        random_state=0,
    )
    network.fit(X[:, :-1], y, tasks=tasks)
    linear = MultiTaskSGDRegressor(
        coupling=coupling, alpha=0.05, fit_intercept=False, tol=1e-8, max_iter=5000, random_state=0
    ).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        np.column_stack([network.coef_, network.intercept_]), linear.coef_, atol=1e-5
    )


SCALES = [("squared_error", 1e4, 2e3), ("squared_error", 0.0, 1e-5), ("huber", 1e4, 2e3)]
SCALES += [("quantile", -1e4, 2e3), ("poisson", 0.0, 1e4)]


@pytest.mark.parametrize(("loss", "shift", "scale"), SCALES)
def test_targets_of_any_unit_fit_alike(loss, shift, scale):
    X, y, tasks = regression(n=240)
    y, first = y + 2, tasks < 2  # a task comes later
    settings = {"loss": loss, "dtype": "float64", "quantile": 0.7, "warm_start": True}

    def fitted(y, delta):
        model = small(**settings, huber_delta=delta)
        model.partial_fit(X[first], y[first], tasks=tasks[first]).partial_fit(X, y, tasks=tasks)
        return pickle.loads(pickle.dumps(model.fit(X, y, tasks=tasks)))

    want, got = fitted(y, 0.5), fitted(shift + scale * y, 0.5 * scale)
    for asked in (tasks, np.full(240, 9)):
        predicted = want.predict(X, tasks=asked)
        np.testing.assert_allclose(
            got.predict(X, tasks=asked), shift + scale * predicted, rtol=1e-9
        )
        assert np.std(predicted) > 0.1
    np.testing.assert_allclose(got.transform(X), want.transform(X), rtol=1e-7, atol=1e-9)
    if loss != "poisson":
        own = got.transform(X) @ got.coef_.T + got.intercept_
        np.testing.assert_allclose(own[np.arange(240), tasks], got.predict(X, tasks=tasks))
        np.testing.assert_allclose(got.coef_, scale * want.coef_)


def test_learned_relations_are_those_of_standardised_targets():
    X, y, tasks = regression(n=240)
    settings = {"coupling": "learn", "dtype": "float64", "max_iter": 6}
    want, got = (small(**settings).fit(X, v, tasks=tasks) for v in (y, 1e4 + 2048 * y))
    np.testing.assert_allclose(got.task_covariance_, want.task_covariance_, rtol=1e-6)


@pytest.mark.parametrize("y", [np.zeros(40), np.full(40, 1e4)])
def test_a_constant_target_is_predicted(y):
    X = np.random.default_rng(0).normal(size=(40, 2))
    for loss in ("squared_error", "poisson"):
        model = small(loss=loss, max_iter=200, learning_rate_init=0.01).fit(X, y)
        np.testing.assert_allclose(model.predict(X), y, rtol=0.05, atol=0.05)


def test_one_unit_serves_all_numbers_of_a_network_of_several_kinds():
    X, Y = several()
    Y = np.column_stack([1e4 + 2e3 * Y[:, :2], Y[:, 0] > 0, 1e3 * np.exp(Y[:, 0])])
    losses = ["squared_error", "huber", "log_loss", "poisson"]
    model = MultiTaskNetwork(loss=losses, huber_delta=2e3, random_state=0, max_iter=60).fit(X, Y)
    units = model.get_weights()["targets"]
    numbers = Y[:, :2]
    np.testing.assert_allclose(units[0], [numbers.std(), numbers.mean()])
    np.testing.assert_allclose(units[1], [1, np.log(Y[:, 3].mean())])
    guess = model.predict(X)
    assert (((guess - Y) ** 2).mean(axis=0) < 0.05 * Y.var(axis=0))[[0, 1, 3]].all()
    assert (guess[:, 2] == Y[:, 2]).mean() > 0.95
    other = clone(model).set_params(max_iter=1).fit(X, Y + [5, 5, 0, 5])
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other.predict(X), guess)


def test_it_learns_what_a_linear_model_cannot():
    X, y, tasks = regression(n=600)
    y = X[:, 0] * X[:, 1] + 0.2 * tasks
    model = small(hidden_layer_sizes=(32, 16), max_iter=120, learning_rate_init=0.01)
    assert model.fit(X, y, tasks=tasks).score(X, y, tasks=tasks) > 0.95


@pytest.mark.parametrize("batch_size", [1, 7, 500])
@pytest.mark.parametrize("solver", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_every_solver_lowers_the_loss(solver, batch_size):
    X, y, tasks = regression()
    model = small(solver=solver, batch_size=batch_size, learning_rate_init=0.003, max_iter=20)
    losses = [entry["loss"] for entry in model.fit(X, y, tasks=tasks).history_]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_seed_gives_the_same_bits(dtype):
    X, y, tasks = regression()
    fits = [small(dtype=dtype).fit(X, y, tasks=tasks) for _ in range(2)]
    got = [model.predict(X, tasks=tasks) for model in fits]
    np.testing.assert_array_equal(*got)
    assert got[0].dtype == np.dtype(dtype)
    other = small(dtype=dtype, random_state=1).fit(X, y, tasks=tasks)
    assert np.abs(other.predict(X, tasks=tasks) - got[0]).max() > 1e-3


def test_interrupted_and_whole_epochs_agree(monkeypatch):
    X, y, tasks = regression()
    whole = small(batch_size=4, solver="adam").fit(X, y, tasks=tasks)
    monkeypatch.setattr("fastmtl.network_training.WORK_PER_CALL", 1)
    pieces = small(batch_size=4, solver="adam").fit(X, y, tasks=tasks)
    np.testing.assert_array_equal(whole.predict(X, tasks=tasks), pieces.predict(X, tasks=tasks))


def test_any_layout_of_x_is_taken():
    X, y, tasks = regression()
    want = small().fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    read_only = X.copy()
    read_only.flags.writeable = False
    wide = np.zeros((120, 8))
    wide[:, ::2] = X
    for other in (read_only, np.asfortranarray(X), wide[:, ::2], X.astype(">f8"), X.tolist()):
        got = small().fit(other, y, tasks=tasks).predict(other, tasks=tasks)
        np.testing.assert_array_equal(got, want)


def test_images_two_inputs_and_softmaxes_of_different_widths():
    rng = np.random.default_rng(0)
    n = 300
    left, right = rng.integers(0, 3, n), rng.integers(0, 4, n)
    first, second = rng.normal(size=(2, n, 6, 6, 1)) * 0.2
    first[np.arange(n), left, left] += 3
    second[np.arange(n), 5 - right, right] += 3
    Y = np.column_stack([left, right])
    branch = [Conv2D(8, 3), MaxPool2D(2), Flatten()]
    model = MultiTaskNetworkClassifier(
        trunk=[Concat(branch, branch), Dense(32)],
        learning_rate_init=0.01,
        max_iter=60,
        coupling="independent",
        random_state=0,
    ).fit((first, second), Y)
    assert model.score((first, second), Y) > 0.9
    proba = model.predict_proba((first, second))
    assert [part.shape for part in proba] == [(n, 3), (n, 4)]
    for part in proba:
        np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-5)
    assert [len(own) for own in model.classes_] == [3, 4]


@pytest.mark.parametrize("layer", [LSTM(8), GRU(8)])
def test_what_lies_past_a_sequences_end_does_not_matter(layer):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 7, 90)
    X = rng.normal(size=(90, 6, 2))
    y = X[np.arange(90), lengths - 1, 0]
    model = small(trunk=[layer], max_iter=3).fit(X, y, lengths=lengths)
    other = X.copy()
    other[np.arange(6) >= lengths[:, None]] = np.nan
    again = small(trunk=[layer], max_iter=3).fit(other, y, lengths=lengths)
    want = model.predict(X, lengths=lengths)
    np.testing.assert_array_equal(again.predict(other, lengths=lengths), want)
    alone = [model.predict(X[i : i + 1], lengths=lengths[i : i + 1])[0] for i in range(20)]
    np.testing.assert_allclose(alone, want[:20], atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "n_gates"), [(RNN(8), 1), (LSTM(8, forget_bias=2.0), 4), (GRU(8), 3)]
)
def test_states_start_with_gates_that_keep_the_length_of_what_flows_back(layer, n_gates):
    trunk = compile_trunk([layer], [(5, 3)])
    parameters = initial_parameters(trunk, np.random.default_rng(0))
    own = {name: parameters[at].reshape(shape) for name, at, shape in blocks(trunk, 1)}
    U = own["recurrent_kernel"]
    np.testing.assert_allclose(U @ U.T, np.eye(8), atol=1e-12)
    for gate in np.split(U, n_gates, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(8) / n_gates, atol=1e-12)
    assert own["bias"].sum() == (16.0 if n_gates == 4 else 0.0)
    assert np.abs(own["kernel"]).max() <= np.sqrt(6 / 11)


def test_binary_heads_have_probabilities_and_decisions_that_agree():
    X, y, tasks = regression()
    labels = np.where(y > 0, "yes", "no")
    model = MultiTaskNetworkClassifier(hidden_layer_sizes=(8,), max_iter=30, random_state=0)
    model.fit(X, labels, tasks=tasks)
    scores = model.decision_function(X, tasks=tasks)
    proba = model.predict_proba(X, tasks=tasks)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-6)
    np.testing.assert_array_equal(model.predict(X, tasks=tasks), np.where(scores > 0, "yes", "no"))


def test_dropout_draws_anew_and_stays_out_of_predictions():
    X, y, tasks = regression()
    plain = small(trunk=[Dense(8)]).fit(X, y, tasks=tasks)
    dropped = small(trunk=[Dense(8), Dropout(0.5)]).fit(X, y, tasks=tasks)
    assert np.abs(plain.predict(X, tasks=tasks) - dropped.predict(X, tasks=tasks)).max() > 1e-3
    assert dropped.predict(X, tasks=tasks).tolist() == dropped.predict(X, tasks=tasks).tolist()


def test_early_stopping_returns_to_the_best_epoch():
    X, y, tasks = regression(n=60)
    y = y + np.random.default_rng(1).normal(size=60)
    model = small(
        hidden_layer_sizes=(64,),
        early_stopping=True,
        validation_fraction=0.3,
        n_iter_no_change=5,
        learning_rate_init=0.02,
        max_iter=500,
    ).fit(X, y, tasks=tasks)
    losses = [entry["validation_loss"] for entry in model.history_]
    assert model.n_iter_ < 500
    assert np.argmin(losses) < model.n_iter_ - 1
    assert len(model.history_[0]["validation_task_loss"]) == 3


def test_schedules_set_each_epochs_rate():
    X, y, tasks = regression()
    rates = {
        "constant": [0.01] * 4,
        "cosine": 0.01 * 0.5 * (1 + np.cos(np.pi * np.arange(4) / 4)),
        "invscaling": 0.01 / np.sqrt(np.arange(1, 5)),
        (lambda epoch: 0.1**epoch): 0.1 ** np.arange(4),
    }
    for schedule, want in rates.items():
        model = small(learning_rate=schedule, learning_rate_init=0.01, max_iter=4)
        history = model.fit(X, y, tasks=tasks).history_
        np.testing.assert_allclose([entry["learning_rate"] for entry in history], want)


def test_a_row_of_weight_two_counts_twice():
    X, y, tasks = regression()
    settings = {"batch_size": 1000, "solver": "sgd", "max_iter": 30, "dtype": "float64"}
    doubled = small(**settings).fit(X, y, tasks=tasks, sample_weight=np.full(120, 2.0))
    settings |= {"learning_rate_init": 2e-3, "alpha": 0.5e-3, "weight_decay": 1e-3}
    faster = small(**settings).fit(X, y, tasks=tasks)
    np.testing.assert_allclose(
        doubled.predict(X, tasks=tasks), faster.predict(X, tasks=tasks), atol=1e-10
    )


def test_uncertainty_weighs_noisy_tasks_down():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    Y = np.column_stack([X[:, 0], X[:, 0] + 5 * rng.normal(size=400)])
    settings = {"hidden_layer_sizes": (16,), "max_iter": 40, "learning_rate_init": 0.01}
    settings["coupling"] = "pooled"
    even = small(**settings).fit(X, Y)
    learned = small(**settings, task_weight="uncertainty").fit(X, Y)
    loss = [model.history_[-1]["task_loss"][0] for model in (even, learned)]
    assert loss[1] < 0.5 * loss[0]


def test_divergence_is_said_and_the_earlier_fit_kept():
    X, y, tasks = regression()
    model = small().fit(X, y, tasks=tasks)
    want = model.predict(X, tasks=tasks)
    model.set_params(learning_rate_init=1e6, solver="sgd")
    with pytest.raises(FloatingPointError, match=r"(1\.dense|heads).*lower learning_rate_init"):
        model.fit(10 * X, y, tasks=tasks)
    np.testing.assert_array_equal(model.predict(X, tasks=tasks), want)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1}, {"early_stopping": True}])
@pytest.mark.parametrize("solver", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_no_solver_ever_leaves_weights_that_are_not_finite(solver, settings):
    X, y, tasks = regression()
    y = np.abs(y)
    for rate in 10.0 ** np.arange(-1, 37, 6):
        model = small(loss="poisson", solver=solver, learning_rate_init=rate, **settings)
        model.set_params(activation="identity")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(1e3 * X, y, tasks=tasks)
        except FloatingPointError as error:
            assert "diverged in epoch" in str(error)
            assert not hasattr(model, "_state")
        else:
            assert all(np.isfinite(part).all() for part in model.get_weights().values())


def test_layers_that_get_no_gradient_are_named():
    X, y, tasks = regression()
    scale = pytest.warns(UserWarning, match="4 of 4 features with a root mean square above 30")
    with scale, pytest.warns(ConvergenceWarning, match=r"does not reach 1\.dense \("):
        small(trunk=[Dense(4, "tanh"), Dense(4, "tanh")]).fit(1e5 * X, y, tasks=tasks)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ([1, 1, 40, 1e4], r"2 of 4 features .* above 30 \(the greatest is .*StandardScaler"),
        ([1e-3] * 4, "no feature with a root mean square above 0.01"),
    ],
)
def test_features_far_from_unit_scale_are_said(scale, words):
    X, y, tasks = regression()
    with pytest.warns(UserWarning, match=words) as said:
        small().fit(X * scale, y, tasks=tasks)
    assert said[0].filename == __file__
    small().fit(X * [1, 1e-4, 10, 0], y, tasks=tasks)  # warnings are errors


def task_gradients(model, X, Y):
    """Of the trunk's weights, the gradient of each task's mean loss; by the reference."""
    state, gradients = model._state, []
    for t in range(Y.shape[1]):
        gradient = np.zeros_like(state.parameters)
        settings = np.zeros(13)
        settings[1] = len(X)
        reference.network_train(
            layers=state.trunk.table,
            X=X,
            lengths=np.empty(0, np.int32),
            sample_row=np.arange(len(X)),
            sample_start=np.arange(len(X) + 1),
            task=np.full(len(X), t, np.int32),
            target=Y[:, t].copy(),
            weight=np.ones(len(X)),
            order=np.arange(len(X)),
            head_start=state.head_start,
            head_row=state.head_row,
            head_mix=state.head_mix,
            loss=np.zeros(Y.shape[1], np.int32),
            loss_parameter=np.zeros(Y.shape[1]),
            head_offset=state.trunk.n_parameters,
            n_head_rows=state.n_head_rows,
            max_outputs=Y.shape[1],
            parameters=state.parameters.copy(),
            state=state.moments,
            gradient=gradient,
            settings=settings,
            layer_norms=np.zeros(len(state.trunk.table) + 1),
            task_loss=np.zeros(Y.shape[1]),
            n_threads=1,
        )
        gradients.append(gradient)
    return gradients


def several(n=200):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    return X, np.column_stack([X[:, 0], -3 * X[:, 0] + X[:, 1], 10 * X[:, 2] ** 2])


def test_gradnorm_makes_gradients_as_long_as_what_is_left_to_learn_asks():
    X, Y = several()
    Y = stats.zscore(Y, axis=None)
    settings = {"trunk": [Dense(8, "tanh"), Dense(5, "tanh")], "dtype": "float64", "alpha": 0.0}
    start = small(**settings, learning_rate_init=1e-300, max_iter=1).fit(X, Y)
    once = small(**settings, task_weight="gradnorm", max_iter=1).fit(X, Y)
    twice = small(**settings, task_weight="gradnorm", max_iter=2).fit(X, Y)
    error = [((network.predict(X) - Y) ** 2).mean(axis=0) for network in (start, once)]
    for network, entry, left in zip((start, once), twice.history_, error / error[0]):
        at, n_weights, n_biases = network._state.trunk.table[-1, 6:9]
        last = slice(at, at + n_weights + n_biases)
        lengths = [np.linalg.norm(g[last]) for g in task_gradients(network, X, Y)]
        ratio = entry["task_weight"] * lengths / left**1.5
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-6)
        assert entry["task_weight"].sum() == pytest.approx(3)


def test_a_step_of_pcgrad_is_the_sum_of_projected_gradients():
    X, Y = several()
    settings = {"trunk": [Dense(8, "tanh")], "coupling": "independent", "dtype": "float64"}
    settings |= {"solver": "sgd", "alpha": 0.0, "weight_decay": 0.0}
    settings |= {"batch_size": 200, "max_iter": 1}
    Y = stats.zscore(Y[:, :2] * [1, -1], axis=None)  # two: the order of projections is one
    before = small(**settings, learning_rate_init=1e-300).fit(X, Y)
    after = small(**settings, learning_rate_init=0.1, gradient_surgery="pcgrad").fit(X, Y)
    trunk = slice(0, before._state.trunk.n_parameters)
    gradients = task_gradients(before, X, Y)
    a, b = (g[trunk] for g in gradients)
    assert a @ b < -1e-3
    step = sum(gradients)
    step[trunk] -= a @ b / (b @ b) * b + a @ b / (a @ a) * a
    want = before._state.parameters - 0.1 * step
    np.testing.assert_allclose(after._state.parameters, want, atol=1e-12)


def test_pcgrad_agrees_over_threads_and_forms():
    X, y, tasks = regression()
    settings = {"gradient_surgery": "pcgrad", "dtype": "float64", "hidden_layer_sizes": (16,)}
    want = small(**settings).fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    got = small(**settings, n_threads=2).fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    np.testing.assert_allclose(got, want, atol=1e-10)
    plain = small(dtype="float64", hidden_layer_sizes=(16,)).fit(X, y, tasks=tasks)
    assert np.abs(plain.predict(X, tasks=tasks) - want).max() > 1e-4


def test_learned_weights_are_half_the_inverse_of_each_tasks_loss():
    X, Y = several()
    history = small(task_weight="uncertainty", max_iter=4).fit(X, Y).history_
    for before, entry in pairwise(history):
        np.testing.assert_allclose(entry["task_weight"], 0.5 / before["task_loss"], rtol=1e-12)
    # Poisson's loss can be negative; the weight is that of its excess over a perfect fit.
    counts = np.random.default_rng(0).poisson(30, size=(200, 1)) + 0.0
    history = small(task_weight="uncertainty", loss="poisson", max_iter=3).fit(X, counts).history_
    rates = counts / counts.mean()
    perfect = (rates - rates * np.log(rates)).mean()
    want = 0.5 / (history[0]["task_loss"] - perfect)
    np.testing.assert_allclose(history[1]["task_weight"], want, rtol=1e-10)


def test_balanced_weights_are_those_of_tasks_mean_losses():
    X, y, tasks = regression()
    keep = (tasks != 1) | (np.arange(120) % 3 == 0)
    X, y, tasks = X[keep], y[keep], tasks[keep]
    sizes = np.bincount(tasks)
    by_hand = dict(enumerate(len(y) / (3 * sizes)))
    fits = [small(task_weight=w).fit(X, y, tasks=tasks) for w in ("balanced", by_hand)]
    np.testing.assert_array_equal(fits[0].coef_, fits[1].coef_)


def test_early_stopping_with_learned_weights_looks_at_all_tasks_alike():
    X, Y = several()
    model = small(task_weight="uncertainty", early_stopping=True, max_iter=30).fit(X, Y)
    for entry in model.history_:
        want = np.log(entry["validation_task_loss"]).mean()
        assert entry["validation_loss"] == pytest.approx(want)


def test_delta_and_quantile_are_those_of_the_losses():
    rng = np.random.default_rng(0)
    X, y = np.ones((4000, 1)), rng.exponential(size=4000)
    settings = {"trunk": [], "alpha": 0.0, "max_iter": 60, "learning_rate": "cosine"}
    settings |= {"learning_rate_init": 0.02, "batch_size": 100, "coupling": "pooled"}
    high = small(**settings, loss="quantile", quantile=0.9).fit(X, y)
    assert high.predict(X[:1])[0] == pytest.approx(np.quantile(y, 0.9), abs=0.05)
    huber = small(**settings, loss="huber", huber_delta=0.1).fit(X, y).predict(X[:1])[0]
    assert np.clip(y - huber, -0.1, 0.1).mean() == pytest.approx(0, abs=0.003)
    assert abs(huber - y.mean()) > 0.1


def test_clipping_keeps_a_wild_rate_finite():
    X, y, tasks = regression()
    model = small(solver="sgd", learning_rate_init=1.0, clip_norm=1.0)
    model.fit(10 * X, y, tasks=tasks)
    assert np.isfinite(model.predict(X, tasks=tasks)).all()


def test_history_has_a_gradient_norm_for_every_layer_and_the_heads():
    X, y, tasks = regression()
    model = small(trunk=[Dense(8), LayerNorm("relu"), Dense(4)]).fit(X, y, tasks=tasks)
    norms = model.history_[-1]["gradient_norms"]
    assert norms.shape == (5,)
    assert norms[0] == 0 and (norms[1:] > 0).all()


def test_partial_fit_continues_and_takes_new_tasks():
    X, y, tasks = regression()
    model = small().partial_fit(X[tasks < 2], y[tasks < 2], tasks=tasks[tasks < 2])
    before = model.predict(X[:5], tasks=np.zeros(5, int))
    model.partial_fit(X, y, tasks=tasks)
    assert model.n_tasks_ == 3
    assert np.abs(model.predict(X[:5], tasks=np.zeros(5, int)) - before).max() < 0.5
    first = MultiTaskNetworkClassifier(hidden_layer_sizes=(4,), random_state=0)
    with pytest.raises(ValueError, match="classes is None"):
        first.partial_fit(X, y > 0, tasks=tasks)
    first.partial_fit(X, y > 0, [False, True], tasks=tasks).partial_fit(X, y > 0, tasks=tasks)
    assert first.t_ == 2 * -(-120 // 32)


def test_warm_start_continues():
    X, y, tasks = regression()
    model = small(warm_start=True, max_iter=10).fit(X, y, tasks=tasks)
    first = model.history_[-1]["loss"]
    assert model.fit(X, y, tasks=tasks).history_[0]["loss"] < first + 1e-3
    assert model.t_ == 20 * 4


def test_weights_go_out_and_in():
    X, y, tasks = regression()
    model, other = (small(random_state=s).fit(X, y, tasks=tasks) for s in (0, 1))
    weights = model.get_weights()
    assert list(weights) == [
        "1.dense.kernel",
        "1.dense.bias",
        "shared",
        "shared_intercept",
        "own",
        "own_intercept",
        "targets",
    ]
    np.testing.assert_allclose(weights["targets"][0], [y.std(), y.mean()])
    other.set_weights(weights)
    np.testing.assert_array_equal(other.predict(X, tasks=tasks), model.predict(X, tasks=tasks))
    with pytest.raises(ValueError, match="has shape"):
        other.set_weights({"own": np.zeros((1, 1))})
    with pytest.raises(ValueError, match="the names are"):
        other.set_weights({"nothing": 0})
    with pytest.raises(ValueError, match="NaN"):
        other.set_weights({"own": weights["own"] * np.nan})


def test_features_carry_another_model():
    X, y, tasks = regression(n=400)
    y = X[:, 0] * X[:, 1] + tasks
    trunk = small(hidden_layer_sizes=(32,), max_iter=80, learning_rate_init=0.01)
    features = trunk.fit(X, y, tasks=tasks).transform(X)
    assert features.shape == (400, 32)
    head = MultiTaskSGDRegressor(random_state=0).fit(features, y, tasks=tasks)
    assert head.score(features, y, tasks=tasks) > 0.9
    scaled = make_pipeline(StandardScaler(), small()).fit(X, np.column_stack([y, y]))
    assert scaled.predict(X).shape == (400, 2)


def test_an_unseen_task_gets_the_shared_head():
    X, y, tasks = regression()
    model = small().fit(X, y, tasks=tasks)
    weights = model.get_weights()
    want = model.transform(X) @ weights["shared"][0, 0] + weights["shared_intercept"][0, 0]
    want = want * y.std() + y.mean()
    np.testing.assert_allclose(model.predict(X, tasks=np.full(120, 9)), want, atol=1e-5)
    model.set_params(unseen_tasks="error")
    with pytest.raises(ValueError, match="not in training"):
        model.predict(X, tasks=np.full(120, 9))


def test_independent_heads_predict_the_mean_for_an_unseen_task():
    X, y, tasks = regression()
    model = small(coupling="independent").fit(X, y, tasks=tasks)
    want = np.einsum("nf,nf->n", model.transform(X), model.coef_[tasks]) + model.intercept_[tasks]
    np.testing.assert_allclose(model.predict(X, tasks=tasks), want, atol=1e-5)
    unseen = model.predict(X, tasks=np.full(120, 9))
    np.testing.assert_array_equal(unseen, np.full(120, y.mean(), np.float32))


def test_it_can_be_cloned_and_pickled():
    X, y, tasks = regression()
    model = small(trunk=[Dense(4), Dropout(0.1)]).fit(X, y, tasks=tasks)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X, tasks=tasks), model.predict(X, tasks=tasks))
    with pytest.raises(NotFittedError):
        clone(model).predict(X, tasks=tasks)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_stops_within_a_second():
    X, y, tasks = regression(n=4000)
    main = threading.main_thread().ident
    pressed = []

    def press():
        pressed.append(time.perf_counter())
        signal.pthread_kill(main, signal.SIGINT)

    timer = threading.Timer(0.5, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        small(max_iter=10**6).fit(X, y, tasks=tasks)
    # Generous for a loaded machine; the call itself returns every few milliseconds here.
    assert time.perf_counter() - pressed[0] < 5


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"solver": "lbfgs"}, "solver is 'lbfgs'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate_init": 0}, "learning_rate_init is 0"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"huber_delta": 0}, "huber_delta is 0"),
        ({"quantile": 1.0}, "quantile is 1"),
        ({"gradient_surgery": "mgda"}, "gradient_surgery is 'mgda'"),
        ({"task_weight": "learned"}, "task_weight is 'learned'"),
        ({"task_weight": "gradnorm", "trunk": []}, "needs a trunk"),
        ({"alpha": np.nan}, "alpha is nan"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"dtype": "single precision"}, "dtype is 'single precision'"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"trunk": Dense(3)}, "trunk is Dense"),
        ({"trunk": ["relu"]}, "layers of fastmtl.layers"),
        ({"trunk": [Conv2D(3)]}, "needs images"),
        ({"trunk": [LSTM(3)]}, "needs sequences"),
        ({"trunk": [Dense(3), Concat([], [])]}, "it must be the first"),
        ({"trunk": [Concat([], [])]}, "a tuple of 2 arrays"),
        ({"learning_rate": lambda epoch: -1}, "return a positive finite number"),
        ({"coupling": np.eye(3)}, "bare matrix"),
        ({"early_stopping": True, "validation_fraction": 0.999}, "leaves no row"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, match):
    X, y, tasks = regression()
    with pytest.raises(ValueError, match=match):
        small(**settings).fit(X, y, tasks=tasks)


def test_bad_data_is_refused_by_name():
    X, y, tasks = regression()
    with pytest.raises(ValueError, match="NaN"):
        small().fit(np.where(X > 2, np.nan, X), y, tasks=tasks)
    with pytest.raises(ValueError, match="tasks has 3 labels"):
        small().fit(X, y, tasks=[1, 2, 3])
    sequences = np.zeros((120, 5, 2))
    model = small(trunk=[LSTM(2)])
    with pytest.raises(ValueError, match="lengths run from 0"):
        model.fit(sequences, y, lengths=np.zeros(120, int))
    with pytest.raises(ValueError, match="lengths has shape"):
        model.fit(sequences, y, lengths=np.ones(3, int))
    model.fit(sequences, y, lengths=np.ones(120, int))
    with pytest.raises(ValueError, match="exactly where"):
        model.predict(sequences)
    with pytest.raises(ValueError, match="features"):
        small().fit(X, y, tasks=tasks).predict(X[:, :2], tasks=tasks)
    with pytest.raises(ValueError, match="negative"):
        small(loss="poisson").fit(X, y, tasks=tasks)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dense(0),
        lambda: Dense(3, "softplus"),
        lambda: Conv2D(2.5),
        lambda: Conv2D(2, stride=0),
        lambda: Conv2D(2, padding="full"),
        lambda: Dropout(1.0),
        lambda: LSTM(3, forget_bias=np.nan),
        lambda: Concat([Dense(2)]),
        lambda: Concat(Dense(2), Dense(2)),
        lambda: compile_trunk([Conv2D(2, 9)], [(4, 4, 1)]),
        lambda: compile_trunk([MaxPool2D(9)], [(4, 4, 1)]),
    ],
)
def test_layers_that_cannot_be_are_refused(make):
    with pytest.raises(ValueError):
        make()


def mixed(n=500):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    Y = np.column_stack(
        [X[:, 0] * X[:, 1], np.digitize(X[:, 0], [-1, 1]) + 5, np.exp(X[:, 2] / 2).round()]
    )
    Y[rng.random(Y.shape) < 0.2] = np.nan
    return X, Y, ["squared_error", "log_loss", "poisson"]


def test_tasks_of_different_kinds_share_a_trunk():
    X, Y, losses = mixed()
    model = MultiTaskNetwork(loss=losses, max_iter=60, learning_rate_init=0.01, random_state=0)
    predicted = model.fit(X, Y).predict(X)
    assert set(predicted[:, 1]) == {5.0, 6.0, 7.0}
    assert (predicted[:, 2] > 0).all()
    assert model.score(X, Y) > 0.7
    proba = model.predict_proba(X)
    assert proba[0] is None and proba[2] is None
    np.testing.assert_array_equal(model.task_classes_[1][proba[1].argmax(1)], predicted[:, 1])
    row, task = np.nonzero(~np.isnan(Y))
    long = MultiTaskNetwork(
        loss=dict(enumerate(losses)), max_iter=2, batch_size=1, solver="sgd", random_state=0
    ).fit(X[row], Y[row, task], tasks=task)
    assert long.predict(X[row], tasks=task).shape == row.shape
    assert np.isfinite(long.score(X[row], Y[row, task], tasks=task))
    with pytest.raises(ValueError, match="not in training"):
        long.predict(X, tasks=np.full(len(X), 9))


def test_one_kind_of_loss_is_the_regressor():
    X, y, tasks = regression()
    one = MultiTaskNetwork(hidden_layer_sizes=(8,), max_iter=5, random_state=0, coupling="mean")
    one.fit(X, y, tasks=tasks)
    want = small().fit(X, y, tasks=tasks).predict(X, tasks=tasks)
    np.testing.assert_allclose(one.predict(X, tasks=tasks), want, atol=1e-6)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        ("hinge", "loss is 'hinge'"),
        (["log_loss"], "1 entries for 3 tasks"),
        ({0: "log_loss"}, "one for each task"),
        (3, "loss is 3"),
        ("poisson", "negative"),
    ],
)
def test_losses_that_do_not_fit_the_tasks_are_refused(loss, match):
    X, Y, _ = mixed()
    with pytest.raises(ValueError, match=match):
        MultiTaskNetwork(loss=loss).fit(X, Y)


@pytest.mark.parametrize(
    "kind", [MultiTaskNetwork, MultiTaskNetworkClassifier, MultiTaskNetworkRegressor]
)
def test_docstrings_have_every_parameter(kind):
    section = kind.__doc__[kind.__doc__.index("Parameters") : kind.__doc__.index("Attributes")]
    lines = [line.split(" : ")[0] for line in section.splitlines() if " : " in line[:40]]
    assert sorted(", ".join(lines).split(", ")) == sorted(kind().get_params())
    assert not {"{settings}", "{references}"} & set(kind.__doc__.splitlines())


def expected_failures(estimator):
    failures = {
        "check_sample_weight_equivalence_on_dense_data": (
            "batches are random, so a repeated row and a weight of 2 take different paths"
        )
    }
    if estimator.dtype == "float32" and not isinstance(estimator, MultiTaskNetworkClassifier):
        failures["check_regressor_multioutput"] = "predictions are float32, as the network"
    if isinstance(estimator, MultiTaskNetworkClassifier):
        failures["check_classifier_multioutput"] = (
            "predict_proba is a list with one array per task, as MultiOutputClassifier's"
        )
    return failures


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:X has:UserWarning")  # some checks centre it at 100
@parametrize_with_checks(
    [
        MultiTaskNetworkRegressor(),
        MultiTaskNetworkClassifier(),
        MultiTaskNetworkRegressor(dtype="float64"),
        MultiTaskNetwork(dtype="float64"),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("batch_size", [5, 7, 64])
def test_threads_share_a_batch_and_agree_with_one(batch_size):
    X, y, tasks = regression()
    trunk = [Dense(16), Dropout(0.3), Dense(8, "tanh")]

    def fit(n_threads):
        settings = {"trunk": trunk, "batch_size": batch_size, "dtype": "float64"}
        model = small(**settings, n_threads=n_threads, solver="momentum").fit(X, y, tasks=tasks)
        return model.predict(X, tasks=tasks)

    want = fit(1)
    for n_threads in (2, 3):
        got = fit(n_threads)
        np.testing.assert_allclose(got, want, atol=1e-10)
        np.testing.assert_array_equal(fit(n_threads), got)
    with pytest.raises(ValueError, match="n_threads is 0"):
        fit(0)
