"""Early stopping, callbacks, interrupts, and failed fits of the linear models."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor
from fastmtl.monitoring import Best, hold_out
from fastmtl.observations import Classes, Observations


def noisy(seed=0, n_tasks=6, per_task=40, d=30, classify=False):
    """Too many features for the rows, so that training too long hurts."""
    rng = np.random.default_rng(seed)
    task = np.repeat(np.arange(n_tasks), per_task)
    X = rng.normal(size=(len(task), d))
    weights = rng.normal(size=d) + rng.normal(size=(n_tasks, d))
    y = np.einsum("ij,ij->i", X, weights[task]) + 8 * rng.normal(size=len(task))
    return X, (y > 3).astype(int) if classify else y, task


def observations_of(task, label, weight=None):
    task = np.asarray(task, dtype=np.int32)
    order = np.argsort(task, kind="stable")
    task, label = task[order], np.asarray(label, dtype=float)[order]
    n, n_tasks = len(task), int(task.max()) + 1
    weight = np.ones(n) if weight is None else weight
    start = np.searchsorted(task, np.arange(n_tasks + 1))
    labelled = Observations(
        np.zeros((n, 1)), np.arange(n), task, label, weight, start, np.arange(n_tasks), "long"
    )
    return labelled, Classes(np.unique(label), [np.unique(label)] * n_tasks, False, label)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=30, max_size=120),
    fraction=st.floats(0.05, 0.95),
    by_class=st.booleans(),
    seed=st.integers(0, 99),
)
def test_each_task_and_class_gives_its_share_and_keeps_one(labels, fraction, by_class, seed):
    task, label = np.array(labels).T
    labelled, classes = observations_of(task, label)
    rng = np.random.RandomState(seed)
    sizes = np.bincount(task)
    kinds = [len(np.unique(label[task == t])) if by_class else 1 for t in range(len(sizes))]
    expected = np.minimum(np.floor(fraction * sizes + 1e-9), np.maximum(sizes - kinds, 0))
    if not expected.any():
        with pytest.raises(ValueError, match="so no task can give one"):
            hold_out(labelled, classes, fraction, rng, by_class=by_class)
        return
    training, held_out = hold_out(labelled, classes, fraction, rng, by_class=by_class)
    (train, train_classes), (held, held_classes) = training, held_out
    assert sorted(np.concatenate([train.row, held.row])) == list(range(len(task)))
    np.testing.assert_array_equal(train_classes.code, labelled.target[train.row])
    np.testing.assert_array_equal(held_classes.code, labelled.target[held.row])
    for part in (train, held):
        np.testing.assert_array_equal(part.task, labelled.task[part.row])
        counts = np.bincount(part.task, minlength=labelled.n_tasks)
        np.testing.assert_array_equal(np.diff(part.task_start), counts)
    np.testing.assert_array_equal(np.bincount(held.task, minlength=len(sizes)), expected)
    for t in np.unique(task) if by_class else []:
        for kind in np.unique(label[task == t]):
            n_kind = np.sum((task == t) & (label == kind))
            share = expected[t] * (n_kind - 1) / max(1, sizes[t] - kinds[t])
            assert abs(np.sum(held.target[held.task == t] == kind) - share) < 1
            assert np.sum(train.target[train.task == t] == kind) >= 1


def test_small_tasks_and_weightless_rows_are_not_held_out():
    task = np.repeat([0, 1, 2], [40, 9, 1])
    weight = np.ones(50)
    weight[:20] = 0.0
    labelled, classes = observations_of(task, np.arange(50), weight)
    rng = np.random.RandomState(0)
    (train, _), (held, _) = hold_out(labelled, classes, 0.1, rng, by_class=False)
    assert held.task.tolist() == [0, 0]
    assert held.row.min() >= 20
    assert len(train.row) == 48


def test_a_fraction_too_small_for_every_task_is_refused():
    X, y, task = noisy()
    model = MultiTaskSGDRegressor(early_stopping=True, validation_fraction=0.02)
    with pytest.raises(ValueError, match=r"validation_fraction is 0.02 .* largest task has 40"):
        model.fit(X, y, tasks=task)
    with pytest.raises(ValueError, match=r"validation_fraction is 1\.5"):
        MultiTaskSGDRegressor(validation_fraction=1.5).fit(X, y, tasks=task)


@pytest.mark.parametrize("solver", ["saga", "sgd"])
@pytest.mark.parametrize("classify", [False, True])
def test_early_stopping_keeps_the_best_epoch_and_beats_fitting_to_the_end(solver, classify):
    X, y, task = noisy(classify=classify)
    Estimator = MultiTaskSGDClassifier if classify else MultiTaskSGDRegressor
    seen = []

    def watch(epoch):
        seen.append((epoch.validation_loss, epoch.model.coef_))

    options = {"alpha": 1e-6, "solver": solver, "random_state": 0, "validation_fraction": 0.25}
    model = Estimator(early_stopping=True, callbacks=watch, **options).fit(X, y, tasks=task)
    losses = [entry["validation_loss"] for entry in model.history_]
    assert losses == [loss for loss, _ in seen]
    assert model.best_iter_ == 1 + np.argmin(losses)
    assert model.best_iter_ < model.n_iter_ < model.max_iter
    assert np.array_equal(model.coef_, seen[model.best_iter_ - 1][1])
    # The last n_iter_no_change epochs are those without improvement.
    floor = min(losses[: -model.n_iter_no_change])
    assert min(losses[-model.n_iter_no_change :]) > floor - model.tol * abs(floor)

    more = noisy(per_task=400)[0], *noisy(per_task=400, classify=classify)[1:]
    longer = Estimator(tol=None, max_iter=300, **options).fit(X, y, tasks=task)
    assert model.score(*more[:2], tasks=more[2]) > longer.score(*more[:2], tasks=more[2])


def test_the_held_out_loss_is_that_of_labels_never_trained_on():
    X, y, task = noisy()
    kept = {}

    def watch(epoch):
        kept[epoch.epoch] = epoch

    model = MultiTaskSGDRegressor(
        early_stopping=True, validation_fraction=0.25, random_state=3, max_iter=4, tol=None
    )
    model.set_params(callbacks=watch).fit(X, y, tasks=task)
    labelled, classes = observations_of(task, y)
    rng = np.random.RandomState(3)
    training, held_out = hold_out(labelled, classes, 0.25, rng, by_class=False)
    rows = held_out[0].row
    last = MultiTaskSGDRegressor(random_state=3, max_iter=4, tol=None)
    last.fit(X[training[0].row], y[training[0].row], tasks=task[training[0].row])
    error = last.predict(X[rows], tasks=task[rows]) - y[rows]
    assert model.history_[3]["validation_loss"] == pytest.approx(0.5 * np.mean(error**2), rel=1e-6)


def test_the_three_forms_hold_the_same_labels_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5))
    Y = X @ rng.normal(size=(5, 3)) + rng.normal(size=(60, 3))
    Y[rng.random(Y.shape) < 0.3] = np.nan
    row, task = np.nonzero(~np.isnan(Y))
    model = MultiTaskSGDRegressor(early_stopping=True, random_state=0, max_iter=20, tol=None)
    matrix = model.fit(X, Y).coef_
    assert np.array_equal(model.fit(X[row], Y[row, task], tasks=task).coef_, matrix)
    parts = [np.flatnonzero(~np.isnan(Y[:, t])) for t in range(3)]
    listed = model.fit([X[own] for own in parts], [Y[own, t] for t, own in enumerate(parts)])
    assert np.array_equal(listed.coef_, matrix)


def test_early_stopping_is_not_for_partial_fit():
    X, y, task = noisy()
    with pytest.raises(ValueError, match="early_stopping is True; partial_fit"):
        MultiTaskSGDRegressor(early_stopping=True).partial_fit(X, y, tasks=task)


def test_callbacks_are_told_each_epoch_and_may_stop_the_fit():
    X, y, task = noisy()
    epochs = []
    model = MultiTaskSGDRegressor(
        tol=1e-9, random_state=0, callbacks=[epochs.append, lambda epoch: epoch.epoch == 7]
    )
    model.fit(X, y, tasks=task)  # and no warning that it did not converge
    assert model.n_iter_ == model.best_iter_ == 7
    assert [e.epoch for e in epochs] == list(range(1, 8))
    assert [e.objective for e in epochs] == [entry["objective"] for entry in model.history_]
    assert [e.seconds for e in epochs] == [entry["seconds"] for entry in model.history_]
    assert epochs[0].validation_loss is None
    with pytest.raises(AttributeError):
        epochs[0].epoch = 3


def test_a_callback_sees_a_fitted_model_of_its_own():
    X, y, task = noisy()
    models = []
    model = MultiTaskSGDRegressor(
        tol=None, max_iter=3, random_state=0, callbacks=lambda e: models.append(e.model)
    )
    model.fit(X, y, tasks=task)
    model.set_params(callbacks=None)
    for k, seen in enumerate(models):
        again = MultiTaskSGDRegressor(tol=None, max_iter=k + 1, random_state=0)
        again.fit(X, y, tasks=task)
        assert seen.n_iter_ == k + 1
        assert np.array_equal(seen.predict(X, tasks=task), again.predict(X, tasks=task))
    assert pickle.loads(pickle.dumps(model)).n_iter_ == 3


def test_partial_fit_calls_back_once():
    X, y, task = noisy()
    epochs = []
    model = MultiTaskSGDRegressor(callbacks=epochs.append)
    model.partial_fit(X, y, tasks=task).partial_fit(X, y, tasks=task)
    assert [e.epoch for e in epochs] == [1, 1]


def test_callbacks_must_be_callable():
    X, y, task = noisy()
    with pytest.raises(TypeError, match=r"callbacks has 3; pass a function"):
        MultiTaskSGDRegressor(callbacks=[print, 3]).fit(X, y, tasks=task)


def trip(epoch):
    raise RuntimeError("from the callback")


@pytest.mark.parametrize("warm_start", [False, True])
def test_an_exception_leaves_an_unfitted_estimator_unfitted_and_a_fitted_one_as_it_was(warm_start):
    X, y, task = noisy()
    model = MultiTaskSGDRegressor(
        max_iter=20, tol=None, random_state=0, warm_start=warm_start, callbacks=trip
    )
    for method in (model.fit, model.partial_fit):
        with pytest.raises(RuntimeError, match="from the callback"):
            method(X, y, tasks=task)
        assert vars(model).keys() == model.get_params().keys()
    model.set_params(callbacks=None).fit(X, y, tasks=task)
    before, coef = vars(model).copy(), model.coef_.copy()
    model.callbacks = before["callbacks"] = trip
    narrow = X if warm_start else X[:, :3]
    with pytest.raises(RuntimeError, match="from the callback"):
        model.fit(narrow, -y, tasks=task)
    with pytest.raises(RuntimeError, match="from the callback"):
        model.partial_fit(X, -y, tasks=task)
    assert vars(model) == before
    assert np.array_equal(model.coef_, coef)


def test_a_failed_fit_on_other_features_leaves_the_model_usable():
    X, y, task = noisy()
    model = MultiTaskSGDRegressor(max_iter=20, tol=None).fit(X, y, tasks=task)
    want = model.predict(X, tasks=task)
    with pytest.raises(ValueError, match="y contains NaN"):
        model.fit(X[:, :3], np.full(len(y), np.nan), tasks=task)
    assert np.array_equal(model.predict(X, tasks=task), want)


def test_an_interrupt_keeps_the_best_epoch():
    X, y, task = noisy()
    models = []

    def interrupt(epoch):
        models.append(epoch.model)
        if epoch.epoch == 12:
            raise KeyboardInterrupt

    # A rate this large jumps about, so the best epoch is rarely the last.
    model = MultiTaskSGDRegressor(
        solver="sgd",
        learning_rate="constant",
        eta0=0.02,
        max_iter=50,
        random_state=0,
        callbacks=interrupt,
    )
    with pytest.warns(ConvergenceWarning, match="interrupted in epoch 12; kept .* of epoch"):
        model.fit(X, y, tasks=task)
    values = [entry["objective"] for entry in model.history_]
    assert model.n_iter_ == 12 and model.best_iter_ == 1 + np.argmin(values) < 12
    assert np.array_equal(model.coef_, models[model.best_iter_ - 1].coef_)


def test_a_best_copy_is_whole_even_if_cut_short():
    live = [np.array([1.0]), np.array([10.0])]
    best = Best(exact=True)
    best.offer(1, 5.0, live)
    live[0][:], live[1][:] = 2.0, 20.0
    best.offer(2, 7.0, live)
    best.restore(live)
    assert best.epoch == 1 and live == [1.0, 10.0]
    live[0][:], live[1][:] = 3.0, 30.0

    def arrays():
        yield live[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        best.offer(3, 1.0, arrays())
    best.restore(live)
    assert best.epoch == 3 and live == [3.0, 30.0]


@pytest.mark.parametrize("exact, size, kept", [(False, 10**6, 3), (False, 9, 4), (True, 10**6, 4)])
def test_large_parameters_are_copied_at_intervals(monkeypatch, exact, size, kept):
    seconds = iter(np.arange(100) / 10)  # each copy takes a tenth
    monkeypatch.setattr("fastmtl.monitoring.time.perf_counter", lambda: next(seconds))
    live, best = np.zeros(size), Best(exact)
    for epoch in (1, 2, 3, 4):
        live[:] = epoch
        best.offer(epoch, 1.0 / epoch, [live])
        if epoch == 2:
            [next(seconds) for _ in range(20)]
    best.restore([live])
    assert best.epoch == kept and (live == kept).all()


INTERRUPTED = """
import sys, time, warnings, numpy as np
from fastmtl import MultiTaskSGDRegressor
rng = np.random.default_rng(0)
n, d = 300_000, 60
X, task = rng.normal(size=(n, d)), np.arange(n) % 50
def say(epoch):
    print("epoch", epoch.epoch, flush=True)
print("ready", flush=True)
model = MultiTaskSGDRegressor(solver="sgd", tol=None, max_iter=100_000, callbacks=say)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    model.fit(X, X[:, 0], tasks=task)
print("kept", model.best_iter_, model.score(X[:999], X[:999, 0], tasks=task[:999]) > 0.9)
print(told[0].message)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")
def test_ctrl_c_in_another_process_ends_its_fit_with_a_model():
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    try:
        while "epoch" not in child.stdout.readline():
            assert child.poll() is None
        time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[0]
    finally:
        child.kill()
    assert child.returncode == 0
    assert "True" in said and "interrupted in epoch" in said
