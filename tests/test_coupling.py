"""TaskCoupling: every way of giving C comes to the right B and κ, and wrong ones are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtl import TaskCoupling
from fastmtl.coupling import resolve_coupling


def random_covariance(n_tasks, rank, seed):
    root = np.random.default_rng(seed).normal(size=(n_tasks, rank))
    return root @ root.T


@settings(max_examples=50, deadline=None)
@given(n_tasks=st.integers(1, 12), rank=st.integers(1, 15), seed=st.integers(0, 1000))
def test_factors_rebuild_any_covariance(n_tasks, rank, seed):
    C = random_covariance(n_tasks, rank, seed)
    mixing, kappa = TaskCoupling.from_covariance(C).factor(n_tasks)
    assert (kappa >= 0).all()
    assert mixing.shape[1] < max(2, n_tasks)
    np.testing.assert_allclose(
        mixing @ mixing.T + np.diag(kappa), C, atol=1e-10 * max(1, np.abs(C).max())
    )


def test_precision_and_graph_are_inverses():
    C = random_covariance(5, 9, 0)
    found = TaskCoupling.from_precision(np.linalg.inv(C)).covariance(5)
    np.testing.assert_allclose(found, C, rtol=1e-8)
    A = np.array([[0, 2.0, 0], [2.0, 0, 1.0], [0, 1.0, 0]])
    laplacian = np.array([[2.0, -2, 0], [-2, 3, -1], [0, -1, 1]])
    found = TaskCoupling.from_graph(A, ridge=0.5).covariance(3)
    np.testing.assert_allclose(found, np.linalg.inv(laplacian + 0.5 * np.eye(3)), rtol=1e-10)


def test_similarity_is_the_nearest_covariance():
    S = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    values, vectors = np.linalg.eigh(S)
    assert values[0] < 0
    want = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(TaskCoupling.from_similarity(S).covariance(3), want, atol=1e-12)


def test_words_and_equality():
    assert resolve_coupling("mean") == TaskCoupling.mean()
    assert resolve_coupling("pooled") != TaskCoupling.mean()
    assert TaskCoupling.mean(0.2) != TaskCoupling.mean(0.3)
    assert not TaskCoupling.independent().has_shared_part
    assert TaskCoupling.pooled().factor(4).kappa.tolist() == [0.0] * 4
    assert TaskCoupling.mean([0.1, 0.2]).factor(2).kappa.tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: TaskCoupling.from_covariance([[1.0, 2.0], [2.0, 1.0]]),
            "smallest eigenvalue is -1",
        ),
        (lambda: TaskCoupling.from_covariance([[1.0, 0.5], [0.0, 1.0]]), "C is not symmetric"),
        (
            lambda: TaskCoupling.from_covariance([[1.0, 0.5]]),
            r"C has shape \(1, 2\); pass a square",
        ),
        (lambda: TaskCoupling.from_covariance([[np.nan]]), "C contains NaN"),
        (lambda: TaskCoupling.from_precision(np.ones((2, 2))), "K .* is singular"),
        (lambda: TaskCoupling.from_precision([[-1.0]]), r"K \(precision\) is not positive"),
        (lambda: TaskCoupling.from_graph([[0, -1.0], [-1.0, 0]]), "A has a negative edge weight"),
        (lambda: TaskCoupling.from_graph([[0.0]], ridge=0), "ridge is 0"),
        (lambda: TaskCoupling.from_similarity([[-1.0]]), "S has no positive eigenvalue"),
        (lambda: TaskCoupling.mean(kappa=0.0), "kappa is 0.0; pass a positive"),
        (lambda: TaskCoupling.mean(kappa="big"), "kappa is 'big'"),
        (lambda: TaskCoupling.independent(kappa=[1.0, -1.0]), "kappa is"),
        (lambda: TaskCoupling.from_factors([[1.0]], [0.0, 1.0]), "kappa has 2 entries for 1 rows"),
        (lambda: TaskCoupling.mean([1.0, 2.0]).factor(3), "made for 2 tasks, but the data has 3"),
        (lambda: resolve_coupling([[1.0]]), "bare matrix"),
        (lambda: resolve_coupling(3), "coupling is 3"),
    ],
)
def test_what_is_wrong_is_said(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_large_covariances_are_truncated_and_say_so():
    C = random_covariance(100, 90, 0) + 0.5 * np.eye(100)
    coupling = TaskCoupling.from_covariance(C)
    mixing, _kappa = coupling.factor(100)
    found = coupling.covariance(100)
    assert mixing.shape == (100, 64)
    np.testing.assert_allclose(np.diag(found), np.diag(C), rtol=1e-6)
    error = np.linalg.norm(found - C) / np.linalg.norm(C)
    assert coupling.truncation_error == pytest.approx(error)
    assert 0 < error < 0.1
    assert "rank=64, error=" in repr(coupling)
    exact = TaskCoupling.from_covariance(C, rank=100)
    assert exact.truncation_error == 0.0
    np.testing.assert_allclose(exact.covariance(100), C, atol=1e-10 * C.max())


@settings(max_examples=30, deadline=None)
@given(n_tasks=st.integers(3, 12), rank=st.integers(1, 4), seed=st.integers(0, 1000))
def test_low_rank_plus_diagonal_is_met_exactly_and_truncation_stays_a_covariance(
    n_tasks, rank, seed
):
    C = random_covariance(n_tasks, rank, seed)
    coupling = TaskCoupling.from_covariance(C, rank=1)
    _, kappa = coupling.factor(n_tasks)
    assert kappa.min() >= 0
    assert coupling.truncation_error <= 1.0
    if rank == 1:
        assert coupling.truncation_error < 1e-10


@pytest.mark.parametrize("rank", [0, True, 1.5])
def test_rank_of_a_truncation_is_checked(rank):
    with pytest.raises(ValueError, match="rank is"):
        TaskCoupling.from_covariance(np.eye(2), rank=rank)
