"""A trunk of every layer kind, and data for it: name -> (layers, shapes of X, uses lengths?)."""

import numpy as np

from fastmtl.layers import (
    GRU,
    LSTM,
    RNN,
    Concat,
    Conv2D,
    Dense,
    Flatten,
    LayerNorm,
    MaxPool2D,
)

N = 24
IMAGE = [Conv2D(3, 2, activation="relu"), MaxPool2D(2), Flatten()]

TRUNKS = {
    "none": ([], (5,), False),
    **{
        f"dense {activation}": ([Dense(9, activation), Dense(18, activation)], (5,), False)
        for activation in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu")
    },
    "layernorm": ([Dense(9, "tanh"), LayerNorm("relu"), Dense(4)], (5,), False),
    "conv": ([Conv2D(4, 3), MaxPool2D(2), Conv2D(2, 2, "tanh"), Flatten()], (9, 8, 2), False),
    "conv, padded": (
        [Conv2D(4, 3, padding="same"), Conv2D(3, 4, "tanh", stride=2, padding="same"), Flatten()],
        (9, 8, 2),
        False,
    ),
    "conv, strides": (
        [Conv2D(4, 3, stride=2), Conv2D(2, 2, "gelu", 3), Flatten()],
        (9, 12, 1),
        False,
    ),
    "two inputs": ([Concat(IMAGE, IMAGE), Dense(8)], ((7, 6, 1), (8, 8, 2)), False),
    "rnn": ([RNN(6)], (7, 3), False),
    "rnn, lengths": ([RNN(6, return_sequences=True), RNN(4)], (7, 3), True),
    "lstm": ([LSTM(6)], (7, 3), False),
    "lstm, lengths": ([LSTM(6, return_sequences=True), LSTM(4)], (7, 3), True),
    "gru": ([GRU(6)], (7, 3), False),
    "gru, lengths": ([GRU(6, return_sequences=True), GRU(4)], (7, 3), True),
    "sequence, flattened": ([LSTM(5, return_sequences=True), Flatten(), Dense(4)], (5, 2), True),
}


def data(shape, with_lengths, seed=0):
    rng = np.random.default_rng(seed)
    shapes = shape if isinstance(shape[0], tuple) else (shape,)
    X = tuple(rng.normal(size=(N, *s)) for s in shapes)
    lengths = rng.integers(1, shapes[0][0] + 1, N) if with_lengths else None
    return rng, (X if len(X) > 1 else X[0]), lengths
