"""Every layer kind against PyTorch: outputs, one gradient, twenty steps of SGD."""

import numpy as np
import pytest
from network_trunks import TRUNKS, N, data

from fastmtl import MultiTaskNetworkClassifier, MultiTaskNetworkRegressor
from fastmtl.layers import GRU, LSTM, Dense, Dropout

torch = pytest.importorskip("torch")
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def tensors(X, dtype):
    if isinstance(X, tuple):
        return tuple(torch.from_numpy(part.astype(dtype)) for part in X)
    return torch.from_numpy(X.astype(dtype))


def assert_close(got, want, dtype):
    want = want.detach().numpy()
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TRUNKS)
def test_twenty_steps_of_sgd_are_those_of_pytorch(name, dtype):
    trunk, shape, with_lengths = TRUNKS[name]
    rng, X, lengths = data(shape, with_lengths)
    Y = rng.normal(size=(N, 3))
    Y[:, 1:][rng.random((N, 2)) < 0.2] = np.nan
    Y = (Y - np.nanmean(Y)) / np.nanstd(Y)  # as the network trains on them, so that losses agree
    rate, alpha, decay = 0.05, 0.02, 0.03
    model = MultiTaskNetworkRegressor(
        trunk=trunk,
        solver="sgd",
        learning_rate_init=rate,
        batch_size=N,
        alpha=alpha,
        weight_decay=decay,
        coupling="mean",
        dtype=dtype,
        random_state=0,
        max_iter=1,
    )
    model.fit(X, Y, lengths=lengths)
    module = model.to_torch()
    inputs = tensors(X, dtype)
    steps = None if lengths is None else torch.from_numpy(lengths)
    assert_close(model.predict(X, lengths=lengths), module(inputs, steps), dtype)

    present = torch.from_numpy(~np.isnan(Y))
    target = torch.from_numpy(np.nan_to_num(Y).astype(dtype))
    # Decay is for kernels, not biases; the heads' penalty takes their intercepts in.
    kernels = [
        parameter
        for key, parameter in module.named_parameters()
        if key.startswith("layers") and "bias" not in key
    ]
    norms = [p for key, p in module.named_modules() if isinstance(p, torch.nn.LayerNorm)]
    kernels = [p for p in kernels if all(p is not norm.weight for norm in norms)]
    optimiser = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=rate)
    for _ in range(20):
        optimiser.zero_grad()
        error = torch.where(present, module(inputs, steps) - target, torch.zeros(1).to(target))
        loss = 0.5 * (error**2).sum() / N
        loss = loss + 0.5 * alpha * ((module.head**2).sum() + (module.head_intercept**2).sum())
        loss = loss + 0.5 * decay * sum((p**2).sum() for p in kernels)
        loss.backward()
        optimiser.step()
        model.partial_fit(X, Y, lengths=lengths)
    assert_close(model.predict(X, lengths=lengths), module(inputs, steps), dtype)
    assert_close(model.transform(X, lengths=lengths), module.features(inputs, steps), dtype)
    H, intercept = model._state.heads()
    assert_close(H, module.head, dtype)
    assert_close(intercept, module.head_intercept, dtype)
    rebuilt = model.to_torch()
    for (key, got), want in zip(rebuilt.named_parameters(), module.parameters()):
        assert_close(got.detach().numpy(), want, dtype)
        assert np.isfinite(got.detach().numpy()).all(), key


@pytest.mark.parametrize(
    ("solver", "make"),
    [
        ("adam", lambda p, a: torch.optim.Adam(p, lr=0.01, weight_decay=a)),
        ("adamw", lambda p, a: torch.optim.AdamW(p, lr=0.01, weight_decay=a)),
        ("momentum", lambda p, a: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=a)),
        (
            "nesterov",
            lambda p, a: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=a),
        ),
    ],
)
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_optimisers_and_softmax_heads_are_those_of_pytorch(solver, make, clip_norm):
    rng, X, _ = data((5,), False)
    Y = np.column_stack([rng.permutation(np.arange(N) % 3), rng.permutation(np.arange(N) % 4)])
    # A trunk without layers: every parameter is in a head, and one decay covers them all.
    model = MultiTaskNetworkClassifier(
        trunk=[],
        solver=solver,
        learning_rate_init=0.01,
        batch_size=N,
        alpha=0.1,
        clip_norm=clip_norm,
        dtype="float64",
        random_state=0,
    )
    classes = np.arange(4)
    model.partial_fit(X, Y, classes=classes)
    module = model.to_torch()
    model._state.moments[...] = 0
    model._state.steps = 0
    optimiser = make(module.parameters(), 0.1)
    for _ in range(20):
        optimiser.zero_grad()
        scores = module(tensors(X, "float64"))
        entropy = torch.nn.functional.cross_entropy
        loss = sum(
            entropy(scores[:, 4 * t : 4 * t + 4], torch.from_numpy(Y[:, t])) for t in range(2)
        )
        loss.backward()
        if clip_norm:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in module.parameters()))
            for p in module.parameters():
                p.grad *= min(1.0, clip_norm / norm)
        optimiser.step()
        model.partial_fit(X, Y)
    H, intercept = model._state.heads()
    np.testing.assert_allclose(H, module.head.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(intercept, module.head_intercept.detach().numpy(), atol=1e-10)


def test_dropout_is_off_outside_training_in_both():
    _, X, _ = data((5,), False)
    model = MultiTaskNetworkRegressor(trunk=[Dense(8), Dropout(0.5)], max_iter=2, random_state=0)
    model.fit(X, 20 + 5 * X[:, :2])
    assert_close(model.predict(X), model.to_torch().eval()(tensors(X, "float32")), "float32")


@pytest.mark.parametrize("layer", [LSTM(6, forget_bias=0.0), GRU(6)])
def test_adam_over_shuffled_sequences_stays_with_pytorch(layer):
    rng, X, lengths = data((7, 3), True)
    task, y = rng.integers(3, size=N), rng.normal(size=N)
    y = (y - y.mean()) / y.std()
    model = MultiTaskNetworkRegressor(
        trunk=[layer], coupling="independent", alpha=0.0, weight_decay=0.0, dtype="float64"
    )
    model.set_params(random_state=0)
    model.set_params(learning_rate_init=1e-300).partial_fit(X, y, tasks=task, lengths=lengths)
    model.set_params(learning_rate_init=0.01)
    model._state.moments[...] = model._state.steps = 0
    module = model.to_torch()
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.01)
    for step in range(100):
        rows = np.sort(rng.permutation(N)[: 7 if step % 3 else 1])
        model.partial_fit(X[rows], y[rows], tasks=task[rows], lengths=lengths[rows])
        scores = module(tensors(X[rows], "float64"), torch.from_numpy(lengths[rows]))
        error = scores[range(len(rows)), task[rows]] - torch.from_numpy(y[rows])
        optimiser.zero_grad()
        (0.5 * (error**2).sum() / len(rows)).backward()
        optimiser.step()
    assert_close(
        model.transform(X, lengths=lengths),
        module.features(tensors(X, "float64"), torch.from_numpy(lengths)),
        "float64",
    )
