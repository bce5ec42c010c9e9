"""Splitters: what each promises of tasks and classes, counted."""

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import cross_val_score

from fastmtl import LeaveTasksOut, MultiTaskSGDRegressor, TaskStratifiedKFold, datasets


def counts(cv, X, y, groups, label):
    """Rows of each label in each test fold, after checking that folds partition the rows."""
    folds = list(cv.split(X, y, groups))
    tests = np.concatenate([test for _, test in folds])
    assert np.array_equal(np.sort(tests), np.arange(len(label)))
    for train, test in folds:
        assert np.array_equal(np.sort(np.r_[train, test]), np.arange(len(label)))
    _, code = np.unique(label, return_inverse=True)
    return np.array([np.bincount(code[test], minlength=code.max() + 1) for _, test in folds])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=6, max_size=80),
    st.integers(2, 6),
    st.booleans(),
)
def test_tasks_and_their_classes_differ_by_one_row_between_folds(rows, n_splits, shuffle):
    tasks, y = np.array(rows).T
    X = np.zeros((len(y), 1))
    cv = TaskStratifiedKFold(n_splits, shuffle=shuffle, random_state=0 if shuffle else None)
    for label in (tasks, tasks * 10 + y, np.zeros(len(y))):
        assert np.ptp(counts(cv, X, y, tasks, label), axis=0).max() <= 1


def test_shuffling_depends_on_the_seed_only():
    X, tasks = np.zeros((60, 1)), np.repeat(np.arange(3), 20)

    def first(seed):
        cv = TaskStratifiedKFold(3, shuffle=True, random_state=seed)
        return next(cv.split(X, groups=tasks))[1]

    assert np.array_equal(first(0), first(0)) and not np.array_equal(first(0), first(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_labels_of_a_matrix_are_spread(seed, shuffle):
    rng = np.random.default_rng(seed)
    Y = rng.integers(2, size=(120, 4)).astype(float)
    Y[rng.random(Y.shape) < [0.1, 0.5, 0.8, 0.95]] = np.nan
    cv = TaskStratifiedKFold(3, shuffle=shuffle, random_state=0 if shuffle else None)
    folds = list(cv.split(np.zeros((120, 2)), Y))
    assert np.array_equal(np.sort(np.concatenate([t for _, t in folds])), np.arange(120))
    present = np.array([(~np.isnan(Y[test])).sum(axis=0) for _, test in folds])
    assert np.ptp(present, axis=0).max() <= 6
    assert np.ptp(present[:, 3]) <= 2


def test_left_out_tasks_are_whole_and_folds_are_even():
    sizes = [50, 30, 20, 20, 10, 10, 5, 5]
    tasks = np.repeat([f"t{i}" for i in range(8)], sizes)
    X = np.zeros((150, 1))
    found = counts(LeaveTasksOut(3), X, None, tasks, tasks)
    assert ((found > 0).sum(axis=0) == 1).all()
    assert found.sum(axis=1).tolist() == [50, 50, 50]
    one_each = counts(LeaveTasksOut(8), X, None, tasks, tasks)
    assert sorted(one_each.sum(axis=1).tolist()) == sorted(sizes)


def test_splitters_work_in_cross_validation_with_a_column_and_with_routing():
    X, y, tasks = datasets.make_multitask_regression(30, 4, 6, random_state=0)
    Z = np.column_stack([tasks, X])
    model = MultiTaskSGDRegressor(alpha=0.01, task_column=0, random_state=0)
    for cv in (TaskStratifiedKFold(3, task_column=0), LeaveTasksOut(3, task_column=0)):
        plain = cross_val_score(model, Z, y, cv=cv)
        with_groups = cross_val_score(model, Z, y, cv=type(cv)(3), groups=tasks)
        assert np.array_equal(plain, with_groups)
        with sklearn.config_context(enable_metadata_routing=True):
            routed = MultiTaskSGDRegressor(alpha=0.01, random_state=0)
            routed.set_fit_request(tasks=True).set_score_request(tasks=True)
            cv = type(cv)(3)
            got = cross_val_score(routed, X, y, cv=cv, params={"tasks": tasks, "groups": tasks})
        np.testing.assert_allclose(got, plain)
        assert cv.get_n_splits() == 3


@pytest.mark.parametrize(
    ("cv", "groups", "words"),
    [
        (TaskStratifiedKFold(1), [0] * 4, "n_splits is 1"),
        (TaskStratifiedKFold(5), [0] * 4, "n_splits is 5 for 4 rows"),
        (TaskStratifiedKFold(2, random_state=0), [0] * 4, "random_state is given"),
        (LeaveTasksOut(3), [0, 0, 1, 1], "n_splits is 3 for 2 tasks"),
        (LeaveTasksOut(2), None, "groups is None"),
        (LeaveTasksOut(2), [0], "inconsistent numbers of samples"),
    ],
)
def test_bad_arguments_are_named(cv, groups, words):
    with pytest.raises(ValueError, match=words):
        list(cv.split(np.zeros((4, 1)), None, groups))


def test_repr_names_the_settings():
    text = repr(LeaveTasksOut(3, shuffle=True, random_state=1))
    assert text == "LeaveTasksOut(n_splits=3, shuffle=True, random_state=1, task_column=None)"
