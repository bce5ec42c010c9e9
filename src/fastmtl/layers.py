"""Plain descriptions of the layers of a network's trunk.

A trunk is a list of them; :class:`Concat` joins branches. A description holds settings only: sizes
follow from the data at `fit`, and `compile_trunk` then writes the table that the core reads.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, field

import numpy as np

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Concat",
    "Conv2D",
    "Dense",
    "Dropout",
    "Flatten",
    "LayerNorm",
    "MaxPool2D",
]

ACTIVATIONS = {
    "identity": 0,
    "relu": 1,
    "leaky_relu": 2,
    "tanh": 3,
    "sigmoid": 4,
    "logistic": 4,
    "gelu": 5,
}
GATES = {5: 1, 6: 4, 7: 3}


def _check_size(layer, name, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} of {layer} is {value!r}; pass a positive integer")


def _check_activation(layer, value):
    if value not in ACTIVATIONS:
        words = ", ".join(map(repr, ACTIVATIONS))
        raise ValueError(f"activation of {layer} is {value!r}; pass one of {words}")


@dataclass(frozen=True)
class Dense:
    """A fully connected layer, ``activation(x W + b)``.

    Parameters
    ----------
    units : int
        Number of outputs, positive.
    activation : str, default="relu"
        ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"tanh"``, ``"sigmoid"`` (or ``"logistic"``),
        ``"gelu"`` (exact) or ``"identity"``.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> from fastmtl.layers import Dense
    >>> Dense(64, activation="tanh")
    Dense(units=64, activation='tanh')
    """

    units: int
    activation: str = "relu"

    def __post_init__(self):
        _check_size("Dense", "units", self.units)
        _check_activation("Dense", self.activation)


@dataclass(frozen=True)
class Conv2D:
    """A 2-D convolution with a square kernel.

    Input (height, width, channels) becomes (ho, wo, filters), where ho is
    ``(height - kernel_size) // stride + 1`` without padding and ``ceil(height / stride)`` with.

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size : int, default=3
        Side of the kernel.
    activation : str, default="relu"
        As in :class:`Dense`.
    stride : int, default=1
        Step from one window to the next.
    padding : {"valid", "same"}, default="valid"
        ``"same"`` surrounds images with zeros, as many as it takes; where their number is odd, the
        one more is at the bottom and on the right.

    Examples
    --------
    >>> from fastmtl.layers import Conv2D
    >>> Conv2D(32, 3)
    Conv2D(filters=32, kernel_size=3, activation='relu', stride=1, padding='valid')
    """

    filters: int
    kernel_size: int = 3
    activation: str = "relu"
    stride: int = 1
    padding: str = "valid"

    def __post_init__(self):
        _check_size("Conv2D", "filters", self.filters)
        _check_size("Conv2D", "kernel_size", self.kernel_size)
        _check_size("Conv2D", "stride", self.stride)
        if self.padding not in ("valid", "same"):
            raise ValueError(f"padding of Conv2D is {self.padding!r}; pass 'valid' or 'same'")
        _check_activation("Conv2D", self.activation)


@dataclass(frozen=True)
class MaxPool2D:
    """The largest value of each square block, channel by channel; incomplete blocks are dropped.

    Parameters
    ----------
    pool_size : int, default=2
        Side of a block, and the stride.

    Examples
    --------
    >>> from fastmtl.layers import MaxPool2D
    >>> MaxPool2D(2)
    MaxPool2D(pool_size=2)
    """

    pool_size: int = 2

    def __post_init__(self):
        _check_size("MaxPool2D", "pool_size", self.pool_size)


@dataclass(frozen=True)
class Flatten:
    """Turn an image or a sequence into one vector.

    Examples
    --------
    >>> from fastmtl.layers import Flatten
    >>> Flatten()
    Flatten()
    """


@dataclass(frozen=True)
class RNN:
    """A simple recurrent layer, ``h_t = tanh(x_t W + h_{t-1} U + b)``.

    Parameters
    ----------
    units : int
        Size of the state.
    return_sequences : bool, default=False
        False gives the last state (of each sequence's own length), (units,); True all states,
        (steps, units), zero past a sequence's end.

    Examples
    --------
    >>> from fastmtl.layers import RNN
    >>> RNN(32)
    RNN(units=32, return_sequences=False)
    """

    units: int
    return_sequences: bool = False

    def __post_init__(self):
        _check_size(type(self).__name__, "units", self.units)


@dataclass(frozen=True)
class LSTM(RNN):
    """A long short-term memory [1]_, gates in the order input, forget, cell, output.

    Parameters
    ----------
    units : int
        Size of the state.
    return_sequences : bool, default=False
        As in :class:`RNN`.
    forget_bias : float, default=1.0
        What the forget gates' biases start from. Positive values remember from the first step
        [2]_, as long sequences need; short ones may fit and generalise better from 0.

    References
    ----------
    .. [1] S. Hochreiter and J. Schmidhuber, "Long short-term memory", Neural Computation 9, 1997.
    .. [2] F. Gers, J. Schmidhuber and F. Cummins, "Learning to forget: continual prediction with
       LSTM", Neural Computation 12, 2000.

    Examples
    --------
    >>> from fastmtl.layers import LSTM
    >>> LSTM(32)
    LSTM(units=32, return_sequences=False, forget_bias=1.0)
    """

    forget_bias: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.forget_bias, numbers.Real) or not np.isfinite(self.forget_bias):
            raise ValueError(f"forget_bias of LSTM is {self.forget_bias!r}; pass a finite number")


@dataclass(frozen=True)
class GRU(RNN):
    """A gated recurrent unit [1]_, gates in the order reset, update, new; PyTorch's variant.

    Parameters
    ----------
    units : int
        Size of the state.
    return_sequences : bool, default=False
        As in :class:`RNN`.

    References
    ----------
    .. [1] K. Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014.

    Examples
    --------
    >>> from fastmtl.layers import GRU
    >>> GRU(32)
    GRU(units=32, return_sequences=False)
    """


@dataclass(frozen=True)
class Dropout:
    """Set a random share of the inputs to zero while training, and scale up the others.

    Parameters
    ----------
    rate : float, default=0.5
        The share, in [0, 1).

    Examples
    --------
    >>> from fastmtl.layers import Dropout
    >>> Dropout(0.2)
    Dropout(rate=0.2)
    """

    rate: float = 0.5

    def __post_init__(self):
        if not isinstance(self.rate, numbers.Real) or not 0 <= self.rate < 1:
            raise ValueError(f"rate of Dropout is {self.rate!r}; pass a number in [0, 1)")


@dataclass(frozen=True)
class LayerNorm:
    """Give each sample's vector mean 0 and variance 1, then a learned gain and bias [1]_.

    Parameters
    ----------
    activation : str, default="identity"
        As in :class:`Dense`.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer normalization", 2016.

    Examples
    --------
    >>> from fastmtl.layers import LayerNorm
    >>> LayerNorm()
    LayerNorm(activation='identity')
    """

    activation: str = "identity"

    def __post_init__(self):
        _check_activation("LayerNorm", self.activation)


class Concat:
    """Several branches, each a list of layers on an input of its own, joined into one vector.

    It is the first layer of a trunk, and X is then a tuple with one array per branch.

    Parameters
    ----------
    *branches : list of layers
        At least two.

    Raises
    ------
    ValueError
        If there are fewer than two branches.

    Examples
    --------
    >>> from fastmtl.layers import Concat, Dense
    >>> Concat([Dense(8)], [Dense(8)])
    Concat([Dense(units=8, activation='relu')], [Dense(units=8, activation='relu')])
    """

    def __init__(self, *branches):
        if len(branches) < 2:
            raise ValueError(
                f"Concat got {len(branches)} branches; pass two lists of layers or more"
            )
        for branch in branches:
            if not isinstance(branch, list | tuple):
                raise ValueError(f"a branch of Concat is {branch!r}; pass a list of layers")
        self.branches = tuple(tuple(branch) for branch in branches)

    def __repr__(self):
        return f"Concat({', '.join(repr(list(branch)) for branch in self.branches)})"

    def __eq__(self, other):
        return isinstance(other, Concat) and self.branches == other.branches

    def __hash__(self):
        return hash(self.branches)


@dataclass
class Trunk:
    """The table of the layers that the core reads, and what each line came from."""

    table: np.ndarray
    layers: list  # the description of each line; None for inputs and joins
    shapes: list  # output shape of each line
    n_parameters: int
    work: int = field(default=0)  # multiply-adds of a sample's forward pass
    recurrent: bool = False

    @property
    def n_features(self):
        return int(self.table[-1, 5])


def compile_trunk(layers, shapes):
    """Write the table of a trunk for inputs of the given shapes.

    Parameters
    ----------
    layers : list of layers
    shapes : list of tuple
        The shape of one sample of each input.

    Returns
    -------
    trunk : Trunk

    Raises
    ------
    ValueError
        If a layer cannot read what the layer before gives; the message names both.
    """
    if not isinstance(layers, list | tuple):
        raise ValueError(f"trunk is {layers!r}; pass a list of layers")
    layers = list(layers)
    trunk = Trunk(np.empty((0, 16), np.int64), [], [], 0)
    rows = []

    def add(kind, activation, below, shape, weights=0, biases=0, sizes=(), second=-1, layer=None):
        n_in = 0 if below < 0 else int(np.prod(trunk.shapes[below]))
        n_out = int(np.prod(shape))
        sizes = list(sizes) + [0] * (7 - len(sizes))
        offset = trunk.n_parameters
        rows.append([kind, activation, below, second, n_in, n_out, offset, weights, biases, *sizes])
        trunk.n_parameters += weights + biases
        trunk.layers.append(layer)
        trunk.shapes.append(tuple(shape))
        return len(rows) - 1

    def stack(branch, at):
        for layer in branch:
            at = place(layer, at)
        return at

    def place(layer, at):
        shape = trunk.shapes[at]

        def need(dimensions, what):
            if len(shape) != dimensions:
                raise ValueError(
                    f"trunk has {layer!r} on samples of shape {shape}; it needs {what}"
                )

        if isinstance(layer, Flatten):
            trunk.shapes[at] = (int(np.prod(shape)),)
            return at
        if isinstance(layer, Dense):
            need(1, "vectors: put Flatten() before it")
            d, u = shape[0], layer.units
            trunk.work += d * u
            return add(1, ACTIVATIONS[layer.activation], at, (u,), d * u, u, layer=layer)
        if isinstance(layer, Conv2D):
            if len(shape) == 2:
                shape = (*shape, 1)
            need(3, "images: X of shape (n, height, width, channels)")
            h, w, c = shape
            k, f, stride, same = (
                layer.kernel_size,
                layer.filters,
                layer.stride,
                layer.padding == "same",
            )
            if k > min(h, w) and not same:
                raise ValueError(f"trunk has {layer!r} on images of {h} × {w}, smaller than it")
            height, width = (-(-s // stride) if same else (s - k) // stride + 1 for s in (h, w))
            out = (height, width, f)
            trunk.work += out[0] * out[1] * k * k * c * f
            code = ACTIVATIONS[layer.activation]
            return add(
                2, code, at, out, k * k * c * f, f, (h, w, c, k, f, stride, same), layer=layer
            )
        if isinstance(layer, MaxPool2D):
            need(3, "images: X of shape (n, height, width, channels)")
            h, w, c = shape
            k = layer.pool_size
            if k > min(h, w):
                raise ValueError(f"trunk has {layer!r} on images of {h} × {w}, smaller than it")
            return add(3, 0, at, (h // k, w // k, c), sizes=(h, w, c, k), layer=layer)
        if isinstance(layer, RNN):
            need(2, "sequences: X of shape (n, steps, features)")
            steps, d = shape
            u = layer.units
            kind = {RNN: 5, LSTM: 6, GRU: 7}[type(layer)]
            gates = GATES[kind]
            trunk.recurrent = True
            trunk.work += steps * (d + u) * gates * u
            out = (steps, u) if layer.return_sequences else (u,)
            sizes = (steps, d, u, int(layer.return_sequences))
            biases = (4 if kind == 7 else gates) * u
            return add(kind, 0, at, out, (d + u) * gates * u, biases, sizes, layer=layer)
        if isinstance(layer, Dropout):
            return add(8, 0, at, shape, sizes=(int(layer.rate * 2**32),), layer=layer)
        if isinstance(layer, LayerNorm):
            need(1, "vectors: put Flatten() before it")
            d = shape[0]
            return add(9, ACTIVATIONS[layer.activation], at, shape, d, d, layer=layer)
        if isinstance(layer, Concat):
            raise ValueError("trunk has a Concat after another layer; it must be the first one")
        raise ValueError(f"trunk has {layer!r}; pass layers of fastmtl.layers")

    branches = [()]
    if layers and isinstance(layers[0], Concat):
        branches = layers.pop(0).branches
    if len(branches) != len(shapes):
        wanted = (
            f"a tuple of {len(branches)} arrays" if len(branches) > 1 else "one array, not a tuple"
        )
        raise ValueError(f"X has {len(shapes)} inputs, but the trunk reads {wanted}")
    ends, first = [], 0
    for branch, shape in zip(branches, shapes):
        source = add(0, 0, -1, shape, sizes=(first,))
        first += int(np.prod(shape))
        ends.append(stack(branch, source))
    at = ends[0]
    for end in ends[1:]:
        width = int(np.prod(trunk.shapes[at])) + int(np.prod(trunk.shapes[end]))
        at = add(4, 0, at, (width,), second=end)
    stack(layers, at)
    trunk.table = np.array(rows, dtype=np.int64)
    trunk.work = max(trunk.work, 1)
    return trunk


def blocks(trunk, line):
    """Names, positions and shapes of the parameters of one line of the table."""
    row = trunk.table[line]
    kind, at, n_weights, n_bias = row[0], int(row[6]), int(row[7]), int(row[8])
    if not n_weights:
        return []
    if kind in GATES:
        d, u, gates = int(row[10]), int(row[11]), GATES[kind] * int(row[11])
        shapes = [("kernel", (d, gates)), ("recurrent_kernel", (u, gates)), ("bias", (n_bias,))]
    elif kind == 2:
        k, c, f = int(row[12]), int(row[11]), int(row[13])
        shapes = [("kernel", (k, k, c, f)), ("bias", (f,))]
    elif kind == 9:
        shapes = [("gain", (n_weights,)), ("bias", (n_bias,))]
    else:
        shapes = [("kernel", (int(row[4]), int(row[5]))), ("bias", (n_bias,))]
    found = []
    for name, shape in shapes:
        size = int(np.prod(shape))
        found.append((name, slice(at, at + size), shape))
        at += size
    return found


def conv_padding(row):
    """Zeros around the images of a convolution: left, right, top, bottom."""
    k, stride, same = int(row[12]), int(row[14]), row[15]
    missing = [max(0, (-(-int(size) // stride) - 1) * stride + k - int(size)) for size in row[9:11]]
    top, left = (m // 2 if same else 0 for m in missing)
    bottom, right = (m - m // 2 if same else 0 for m in missing)
    return left, right, top, bottom


def initial_parameters(trunk, rng):
    """Weights that keep a signal's variance: He for relus, Glorot else, orthogonal for states.

    The gates' orthogonal matrices are divided by the root of their number: what flows back to the
    state before is the sum over the gates.
    """
    parameters = np.zeros(trunk.n_parameters)
    for line, row in enumerate(trunk.table):
        for name, where, shape in blocks(trunk, line):
            if name == "gain":
                parameters[where] = 1
            elif name == "recurrent_kernel":
                u, n_gates = shape[0], shape[1] // shape[0]
                gates = [np.linalg.qr(rng.normal(size=(u, u)))[0] for _ in range(n_gates)]
                parameters[where] = np.hstack(gates).ravel() / np.sqrt(n_gates)
            elif name == "kernel":
                fan_in = int(np.prod(shape[:-1]))
                fan_out = shape[-1] * (shape[0] * shape[1] if len(shape) == 4 else 1)
                if row[0] in GATES:
                    fan_out //= GATES[row[0]]
                if row[1] in (1, 2, 5):
                    draw = rng.normal(size=shape) * np.sqrt(2 / fan_in)
                else:
                    draw = rng.uniform(-1, 1, size=shape) * np.sqrt(6 / (fan_in + fan_out))
                parameters[where] = draw.ravel()
            elif row[0] == 6:
                u = int(row[11])
                parameters[where][u : 2 * u] = trunk.layers[line].forget_bias
    return parameters
