"""Exported models, run by onnxruntime, against predictions of the estimators."""

import json

import numpy as np
import pytest
from network_trunks import TRUNKS, N, data

from fastmtl import (
    MultiTaskNetwork,
    MultiTaskNetworkClassifier,
    MultiTaskNetworkRegressor,
    MultiTaskSGDClassifier,
    MultiTaskSGDRegressor,
)
from fastmtl.layers import Dense, Dropout

pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
ATOL = 1e-5  # the graphs compute in float32


def run(model, X, lengths=None):
    """The outputs by name."""
    session = runtime.InferenceSession(
        model.to_onnx().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    parts = X if isinstance(X, tuple) else (X,)
    feed = dict(zip([i.name for i in session.get_inputs()], [x.astype(np.float32) for x in parts]))
    if lengths is not None:
        feed["lengths"] = lengths.astype(np.int32)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed)))


@pytest.mark.parametrize("name", TRUNKS)
def test_every_layer_kind_computes_the_same(name):
    trunk, shape, with_lengths = TRUNKS[name]
    rng, X, lengths = data(shape, with_lengths)
    Y = 20 + 5 * rng.normal(size=(N, 3))
    model = MultiTaskNetworkRegressor(trunk=trunk, max_iter=20, learning_rate_init=0.02)
    model.set_params(random_state=0).fit(X, Y, lengths=lengths)
    found = run(model, X, lengths)
    assert list(found) == ["predictions"]
    want = model.predict(X, lengths=lengths)
    assert want.std() > 0.01
    np.testing.assert_allclose(found["predictions"], want, rtol=ATOL)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_network_classifiers_have_scores_and_probabilities(dtype):
    rng, X, _ = data((5,), False)
    trunk = [Dense(8), Dropout(0.3)]
    Y = np.column_stack([rng.permutation(N) % 3, rng.permutation(N) % 4])
    model = MultiTaskNetworkClassifier(trunk=trunk, dtype=dtype, max_iter=9, random_state=0)
    found = run(model.fit(X, Y), X)
    assert list(found) == ["scores", "probabilities_0", "probabilities_1"]
    scores = np.hstack(model.decision_function(X))
    np.testing.assert_allclose(found["scores"], scores, atol=ATOL)
    for t, want in enumerate(model.predict_proba(X)):
        np.testing.assert_allclose(found[f"probabilities_{t}"], want, atol=ATOL)
    binary = model.fit(X, Y > 1)
    found = run(binary, X)
    want = np.stack(binary.predict_proba(X), axis=1)
    np.testing.assert_allclose(found["probabilities"], want, atol=ATOL)


def test_heads_of_different_kinds():
    rng, X, _ = data((5,), False)
    Y = np.column_stack([X[:, 0], rng.permutation(N) % 3, rng.poisson(2, N)])
    losses = ["squared_error", "log_loss", "poisson"]
    model = MultiTaskNetwork(loss=losses, max_iter=9, random_state=0).fit(X, Y)
    found, want = run(model, X), model.predict(X)
    assert list(found) == ["scores", "predictions_0", "probabilities_1", "predictions_2"]
    for t in (0, 2):
        np.testing.assert_allclose(found[f"predictions_{t}"][:, 0], want[:, t], atol=ATOL)
    proba = model.predict_proba(X)[1]
    np.testing.assert_allclose(found["probabilities_1"], proba, atol=ATOL)


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_linear_regressors(loss):
    rng, X, _ = data((5,), False)
    tasks = np.array(["north", "south", "west"])[rng.permutation(N) % 3]
    y = np.exp(X[:, 0] / 3)
    model = MultiTaskSGDRegressor(loss=loss, random_state=0).fit(X, y, tasks=tasks)
    found = run(model, X)["predictions"]
    for t, label in enumerate(model.tasks_):
        want = model.predict(X, tasks=[label] * N)
        np.testing.assert_allclose(found[:, t], want, rtol=1e-5, atol=ATOL)
    labels = {entry.key: entry.value for entry in model.to_onnx().metadata_props}["tasks"]
    assert json.loads(labels) == ["north", "south", "west"]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_linear_classifiers(n_classes):
    rng, X, _ = data((5,), False)
    Y = np.column_stack([rng.permutation(N) % n_classes for _ in range(2)])
    model = MultiTaskSGDClassifier(random_state=0).fit(X, Y)
    found, want = run(model, X), model.predict_proba(X)
    for t in range(2):
        got = found["probabilities"][:, t] if n_classes == 2 else found[f"probabilities_{t}"]
        np.testing.assert_allclose(got, want[t], atol=ATOL)
    hinge = MultiTaskSGDClassifier(loss="hinge", tol=None, max_iter=50, random_state=0).fit(
        X, Y > 0
    )
    found = run(hinge, X)
    assert list(found) == ["scores"]
    np.testing.assert_allclose(found["scores"], hinge.decision_function(X), atol=ATOL)
    one = MultiTaskSGDClassifier(random_state=0).fit(X, Y[:, 0])
    found, want = run(one, X), one.predict_proba(X)
    got = found["probabilities"][:, 0] if n_classes == 2 else found["probabilities_0"]
    np.testing.assert_allclose(got, want, atol=ATOL)


def test_a_model_that_is_not_fitted_is_refused():
    with pytest.raises(ValueError, match="not fitted"):
        MultiTaskNetworkRegressor().to_onnx()
