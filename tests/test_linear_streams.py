"""partial_fit and warm_start: tasks and classes that come and go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import MultiTaskSGDClassifier, MultiTaskSGDRegressor


def classification(n=900, d=5, n_tasks=3, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    task = np.arange(n) % n_tasks
    X = rng.normal(size=(n, d))
    weights = 2 * rng.normal(size=(d, n_classes)) + rng.normal(size=(n_tasks, d, n_classes))
    scores = np.einsum("ij,ijk->ik", X, weights[task]) + rng.gumbel(size=(n, n_classes))
    return X, scores.argmax(axis=1), task


def held_still(model):
    """The model, whose next step moves nothing that can be seen."""
    return model.set_params(learning_rate="constant", eta0=1e-300)


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
        min_size=1,
        max_size=5,
    )
)
def test_classes_after_a_stream_are_those_of_a_fit_on_all_of_it(batches):
    batches[0] += [(0, 0), (0, 1)]  # the first batch needs two classes
    stream = MultiTaskSGDClassifier()
    rows = []
    for batch in batches:
        rows += batch
        task, y = np.array(batch).T
        stream.partial_fit(np.ones((len(batch), 2)), y, tasks=task)
        task, y = np.array(rows).T
        whole = MultiTaskSGDClassifier(max_iter=1, tol=None)
        whole.fit(np.ones((len(rows), 2)), y, tasks=task)
        assert np.array_equal(stream.classes_, whole.classes_)
        assert sorted(stream.tasks_) == whole.tasks_.tolist()
        for t, label in enumerate(stream.tasks_):
            own = whole.task_classes_[np.flatnonzero(whole.tasks_ == label)[0]]
            assert np.array_equal(stream.task_classes_[t], own)
        assert np.isfinite(stream.predict_proba(np.ones((len(rows), 2)), tasks=task)).all()


@pytest.mark.parametrize("task_intercept", ["coupled", "free", "shared"])
def test_the_odds_of_two_classes_stay_when_a_third_comes(task_intercept):
    X, y, task = classification()
    two = y < 2
    model = MultiTaskSGDClassifier(task_intercept=task_intercept, random_state=0)
    for _ in range(5):
        model.partial_fit(X[two], y[two], tasks=task[two])
    assert model.coef_.shape == (3, 5)
    before = model.decision_function(X, tasks=task)
    held_still(model).partial_fit(X, y, tasks=task)
    assert [len(own) for own in model.task_classes_] == [3, 3, 3]
    scores = model.decision_function(X, tasks=task)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], before, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scores[:, 2], 0.0, atol=1e-200)
    np.testing.assert_allclose(model.shared_coef_[0, 1], -model.shared_coef_[0, 0])


def test_a_class_new_to_one_task_leaves_the_other_tasks_as_they_were():
    X, y, task = classification()
    two = y < 2
    model = MultiTaskSGDClassifier(random_state=0)
    for _ in range(3):
        model.partial_fit(X[two], y[two], tasks=task[two])
    before = model.predict_proba(X, tasks=task)
    some = two | (task == 1)
    held_still(model).partial_fit(X[some], y[some], tasks=task[some])
    assert [own.tolist() for own in model.task_classes_] == [[0, 1], [0, 1, 2], [0, 1]]
    after = model.predict_proba(X, tasks=task)
    np.testing.assert_allclose(after[task != 1, :2], before[task != 1], rtol=1e-10, atol=1e-15)
    assert (after[task == 1, 2] > 0).all() and (after[task != 1, 2] == 0).all()


def test_several_classes_keep_their_vectors_when_another_comes():
    X, y, task = classification(n_classes=4)
    three = y < 3
    model = MultiTaskSGDClassifier(random_state=0)
    for _ in range(3):
        model.partial_fit(X[three], y[three], tasks=task[three])
    shared, own = model.shared_coef_.copy(), [w.copy() for w in model.task_coef_]
    held_still(model).partial_fit(X, y, tasks=task)
    assert np.array_equal(model.shared_coef_[:, :3], shared)
    assert np.abs(model.shared_coef_[:, 3]).max() < 1e-200
    for now, then in zip(model.task_coef_, own):
        assert np.array_equal(now[:3], then) and np.abs(now[3]).max() < 1e-200


def test_classes_that_all_come_first_are_as_good_as_declared():
    X, y, task = classification()
    declared, found = (MultiTaskSGDClassifier(random_state=0) for _ in range(2))
    for begin in range(0, 900, 300):
        part = slice(begin, begin + 300)
        declared.partial_fit(X[part], y[part], classes=[0, 1, 2], tasks=task[part])
        found.partial_fit(X[part], y[part], tasks=task[part])
        assert np.array_equal(declared.coef_, found.coef_)


def test_a_stream_whose_classes_come_late_ends_where_a_fit_ends():
    X, y, task = classification()
    settings = {"alpha": 0.01, "random_state": 0}
    late, declared = (MultiTaskSGDClassifier(**settings) for _ in range(2))
    whole = MultiTaskSGDClassifier(tol=1e-8, **settings).fit(X, y, tasks=task)
    for epoch in range(60):
        known = (y < 2) | (epoch >= 10)
        late.partial_fit(X[known], y[known], tasks=task[known])
        declared.partial_fit(X[known], y[known], classes=[0, 1, 2], tasks=task[known])
    want = whole.predict_proba(X, tasks=task)
    distance = [np.abs(m.predict_proba(X, tasks=task) - want).mean() for m in (late, declared)]
    assert max(distance) < 0.02
    assert late.score(X, y, tasks=task) > whole.score(X, y, tasks=task) - 0.02


def test_classes_may_be_declared_later_and_must_keep_those_before():
    X, y, task = classification()
    two = y < 2
    model = MultiTaskSGDClassifier(random_state=0)
    model.partial_fit(X[two], y[two], tasks=task[two])
    model.partial_fit(X[two], y[two], classes=[2, 1, 0, 3], tasks=task[two])
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert [len(own) for own in model.task_classes_] == [4, 4, 4]
    model.partial_fit(X, y, tasks=task)
    before = vars(model).copy()
    with pytest.raises(ValueError, match=r"labels \[9\] that are not among classes \[0, 1, 2, 3\]"):
        model.partial_fit(X[:2], [0, 9], tasks=task[:2])
    with pytest.raises(ValueError, match=r"classes is \[0, 9\], which lacks \[1, 2, 3\]"):
        model.partial_fit(X[:2], [0, 9], classes=[0, 9], tasks=task[:2])
    assert vars(model) == before
    model.partial_fit(X[:2], [0, 9], classes=[0, 1, 2, 3, 9], tasks=task[:2])
    assert model.classes_.tolist() == [0, 1, 2, 3, 9]


def test_labels_keep_their_type():
    X, y, task = classification()
    names = np.array(["ash", "birch", "a very long name"])[y]
    two = y < 2
    model = MultiTaskSGDClassifier(random_state=0)
    model.partial_fit(X[two], names[two], tasks=task[two]).partial_fit(X, names, tasks=task)
    assert model.classes_.tolist() == ["a very long name", "ash", "birch"]
    assert set(model.predict(X, tasks=task)) == set(names)
    with pytest.raises(ValueError, match="y has labels such as 0 where those known are such as 'a"):
        model.partial_fit(X, y, tasks=task)


def test_columns_of_a_matrix_gain_classes_and_may_be_empty_in_a_batch():
    X, y, _ = classification()
    Y = np.column_stack([y % 2, y, (y > 0) + 5]).astype(float)
    first = Y.copy()
    first[y == 2, 1] = np.nan
    model = MultiTaskSGDClassifier(random_state=0).partial_fit(X, first)
    assert [own.tolist() for own in model.classes_] == [[0, 1], [0, 1], [5, 6]]
    first[:, 0] = np.nan
    model.partial_fit(X, first)
    for _ in range(10):
        model.partial_fit(X, Y)
    assert [own.tolist() for own in model.classes_] == [[0, 1], [0, 1, 2], [5, 6]]
    assert [p.shape[1] for p in model.predict_proba(X)] == [2, 3, 2]
    whole = MultiTaskSGDClassifier(random_state=0).fit(X, Y)
    assert model.score(X, Y) > whole.score(X, Y) - 0.03


def test_a_loss_of_two_classes_refuses_a_third_and_stays():
    X, y, task = classification()
    two = y < 2
    model = MultiTaskSGDClassifier(loss="hinge", random_state=0)
    model.partial_fit(X[two], y[two], tasks=task[two])
    coef = model.coef_
    with pytest.raises(ValueError, match="use loss='log_loss'"):
        model.partial_fit(X, y, tasks=task)
    assert np.array_equal(model.coef_, coef) and model.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_warm_start_goes_by_the_labels_of_tasks_and_classes(dtype):
    X, y, task = classification()
    names = np.array(["north", "south", "west"])[task]
    model = MultiTaskSGDClassifier(warm_start=True, random_state=0, max_iter=20, tol=None)
    model.fit(X, y, tasks=names)
    coef = model.coef_
    rest = task > 0
    held_still(model).fit(X[rest].astype(dtype), y[rest], tasks=names[rest])
    assert model.tasks_.tolist() == ["south", "west"]
    for now, then in zip(model.coef_, coef[1:]):
        np.testing.assert_allclose(now, then, rtol=1e-6)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 5"):
        model.fit(X[:, :2], y, tasks=names)


def test_warm_start_refuses_what_it_cannot_take_over():
    X, y, task = classification()
    model = MultiTaskSGDClassifier(warm_start=True, random_state=0).fit(X, y, tasks=task)
    with pytest.raises(ValueError, match="had another coupling or more classes; fit anew"):
        model.fit(X, y > 0, tasks=task)
    model = MultiTaskSGDClassifier(warm_start=True, random_state=0).fit(X, y > 0, tasks=task)
    with pytest.raises(ValueError, match="had another coupling or more classes; fit anew"):
        model.set_params(coupling="independent").fit(X, y > 0, tasks=task)
    model = MultiTaskSGDClassifier(warm_start=True).fit(X, np.where(y > 0, 2, 1), tasks=task)
    with pytest.raises(ValueError, match="is now the second; fit anew"):
        model.fit(X, np.where(y > 0, 1, 0), tasks=task)


def test_a_regressor_s_new_tasks_start_from_the_shared_part():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(600, 4)), np.arange(600) % 4
    y = X @ rng.normal(size=4) + task
    model = MultiTaskSGDRegressor(random_state=0)
    for _ in range(10):
        model.partial_fit(X[task != 1], y[task != 1], tasks=task[task != 1])
    unseen = model.predict(X, tasks=np.full(600, 1))
    held_still(model).partial_fit(X, y, tasks=task)
    assert model.tasks_.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(model.predict(X, tasks=np.full(600, 1)), unseen)
