"""Datasets: what is fetched is checked, what is made has the truth it claims."""

import os

import numpy as np
import pytest
import scipy.sparse as sp

from fastmtl import datasets

has_data = pytest.mark.skipif(
    not (datasets.get_data_home() / "school.npz").is_file(),
    reason="FASTMTL_DATA names no folder with the data files",
)


@has_data
def test_school_and_landmine_have_the_published_sizes():
    school = datasets.fetch_school()
    assert school.X.shape == (15362, 28)
    assert len(np.unique(school.tasks)) == 139
    X, y, tasks = datasets.fetch_landmine(return_X_y=True)
    assert X.shape == (14820, 9)
    assert len(np.unique(tasks)) == 29
    assert np.mean(y) == pytest.approx(0.061, abs=5e-4)


def test_a_missing_file_says_where_to_put_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"school.npz is not in .*FASTMTL_DATA.*MALSAR"):
        datasets.fetch_school(data_home=tmp_path)
    monkeypatch.setenv("FASTMTL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"landmine\.npz"):
        datasets.fetch_landmine()


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "school.npz").write_bytes(b"not this")
    with pytest.raises(OSError, match="SHA-256"):
        datasets.fetch_school(data_home=tmp_path)


def test_data_home_prefers_argument_then_variable_then_home(monkeypatch):
    monkeypatch.setenv("FASTMTL_DATA", "from_variable")
    assert datasets.get_data_home("given").name == "given"
    assert datasets.get_data_home().name == "from_variable"
    monkeypatch.delenv("FASTMTL_DATA")
    assert os.fspath(datasets.get_data_home()).startswith(os.path.expanduser("~"))


def test_shipped_tasks_are_derived_from_their_data():
    X, _y, tasks = datasets.load_digits_tasks(return_X_y=True)
    assert X.min() >= 0 and X.max() <= 1
    still = tasks == "camera 1,1"
    np.testing.assert_allclose(X[still], datasets.load_digits().data[still] / 16)
    Y = datasets.load_diabetes_tasks().Y
    assert np.all(np.diff(Y, axis=1) <= 0)
    np.testing.assert_allclose(Y.mean(axis=0), np.arange(9, 0, -1) / 10, atol=0.01)


def test_made_regression_follows_its_truth():
    X, y, tasks, truth = datasets.make_multitask_regression(
        [200, 30, 400], 5, 3, noise=0.0, coef=True, random_state=0
    )
    assert np.bincount(tasks).tolist() == [200, 30, 400]
    np.testing.assert_allclose(y, np.einsum("ij,ij->i", X, truth.coef[tasks]), atol=1e-12)


@pytest.mark.parametrize("relation", ["mean", "clusters", "chain", "negative", "outliers"])
def test_made_coefficients_have_the_stated_covariance(relation):
    *_, truth = datasets.make_multitask_regression(
        1, 20000, 6, relation=relation, coef=True, random_state=0
    )
    found = truth.coef @ truth.coef.T / 20000
    np.testing.assert_allclose(found, truth.covariance, atol=0.05)


def test_made_classification_misses_and_is_sparse_as_asked():
    X, Y, tasks = datasets.make_multitask_classification(
        4000, 50, 4, missing=0.3, density=0.1, random_state=0
    )
    assert tasks is None and sp.issparse(X)
    assert np.isnan(Y).mean() == pytest.approx(0.3, abs=0.02)
    assert X.nnz == 4000 * 50 // 10
    assert set(np.unique(Y[~np.isnan(Y)])) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"relation": "friends"}, "relation is 'friends'"),
        ({"relation": np.eye(2)}, r"relation has shape \(2, 2\)"),
        ({"missing": 1.0}, "missing is 1.0"),
        ({"density": 0.0}, "density is 0.0"),
        ({"n_tasks": 0}, "n_tasks is 0"),
    ],
)
def test_bad_arguments_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        datasets.make_multitask_regression(**change)
