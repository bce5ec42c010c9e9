"""Repairing indefinite kernels, and saying how bad they are."""

import numpy as np
import pytest

import fastmtl


def indefinite(n=40, seed=0):
    K = np.random.default_rng(seed).normal(size=(n, n))
    return K + K.T


@pytest.mark.parametrize(
    ("method", "spectrum"),
    [
        ("clip", lambda v: np.maximum(v, 0)),
        ("flip", np.abs),
        ("shift", lambda v: v - v.min()),
    ],
)
def test_repair_changes_the_spectrum_as_named(method, spectrum):
    K = indefinite()
    values, vectors = np.linalg.eigh(K)
    repaired = fastmtl.nearest_psd(K, method)
    np.testing.assert_allclose(repaired.gram, (vectors * spectrum(values)) @ vectors.T, atol=1e-10)
    np.testing.assert_allclose(repaired.eigenvalues, values, atol=1e-10)
    if method != "shift":
        # New rows that are training rows must come out as those do.
        np.testing.assert_allclose(repaired.transform(K), repaired.gram, atol=1e-10)
    else:
        np.testing.assert_array_equal(repaired.transform(K[:3]), K[:3])


def test_clip_is_the_nearest_of_all():
    K = indefinite()
    distance = np.linalg.norm(fastmtl.nearest_psd(K).gram - K)
    rng = np.random.default_rng(1)
    for _ in range(20):
        root = rng.normal(size=(40, 40)) / 3
        other = fastmtl.nearest_psd(K).gram + 0.1 * root @ root.T
        assert np.linalg.norm(other - K) > distance


def test_a_positive_matrix_is_left_alone():
    K = fastmtl.rbf_kernel(np.random.default_rng(0).normal(size=(20, 3))) + 1e-6 * np.eye(20)
    assert fastmtl.nearest_psd(K).gram is K


def test_diagnostics_tell_flat_from_saturated():
    X = np.random.default_rng(0).normal(size=(300, 8))
    good = fastmtl.kernel_diagnostics(X)
    steep = fastmtl.kernel_diagnostics(X, sigma=1e4)
    flat = fastmtl.kernel_diagnostics(X, sigma=1e-6)
    assert steep["saturated"] > 0.99 and flat["flat"] == 1.0
    assert good["saturated"] < 0.05 and good["flat"] < 0.2
    assert flat["effective_rank"] < 1.01 < good["effective_rank"] < 300
    values = np.linalg.eigvalsh(fastmtl.sigmoid_kernel(X, sigma="scale"))
    assert good["smallest_eigenvalue"] == pytest.approx(values[0], abs=1e-10)
    K = indefinite()
    own = np.linalg.eigvalsh(K)
    share = -own[own < 0].sum() / np.abs(own).sum()
    found = fastmtl.kernel_diagnostics(K, precomputed=True)["negative_share"]
    assert found == pytest.approx(share)
    assert fastmtl.kernel_diagnostics(X, n_rows=50)["effective_rank"] < 50


@pytest.mark.parametrize(
    ("K", "method", "words"),
    [
        ([[1.0, 2.0]], "clip", r"K has shape \(1, 2\)"),
        ([[1.0, 2.0], [0.0, 1.0]], "clip", "K is not symmetric"),
        ([[np.nan]], "clip", "K contains NaN"),
        ([[1.0]], "bend", "method is 'bend'"),
    ],
)
def test_what_is_wrong_is_said(K, method, words):
    with pytest.raises(ValueError, match=words):
        fastmtl.nearest_psd(K, method)
