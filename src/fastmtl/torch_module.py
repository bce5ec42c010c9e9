"""A fitted network as a ``torch.nn.Module``; imported only when asked for."""

from __future__ import annotations

import numpy as np

try:
    import torch
    from torch import nn
except ImportError as error:
    raise ImportError(
        "to_torch needs PyTorch; install it with: pip install 'fastmtl[torch]'"
    ) from error

from fastmtl.layers import blocks, conv_padding

__all__ = ["NetworkModule", "build"]


class _Activation(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = int(code)

    def forward(self, x):
        functional = nn.functional
        return (
            lambda x: x,
            functional.relu,
            functional.leaky_relu,
            torch.tanh,
            torch.sigmoid,
            functional.gelu,
        )[self.code](x)


class _ChannelsLast(nn.Module):
    """Runs a layer of PyTorch's channels-first kind on channels-last data."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.movedim(-1, 1)).movedim(1, -1)


class _Recurrent(nn.Module):
    def __init__(self, layer, sequences):
        super().__init__()
        self.layer = layer
        self.sequences = sequences

    def forward(self, x, lengths):
        steps = x.shape[1]
        if lengths is None:
            lengths = torch.full((len(x),), steps)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu().to(torch.int64), batch_first=True, enforce_sorted=False
        )
        states, last = self.layer(packed)
        if self.sequences:
            return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=steps)[0]
        return (last[0] if isinstance(last, tuple) else last)[-1]


class NetworkModule(nn.Module):
    """The trunk and the heads; ``forward(X, lengths=None)`` gives all heads' outputs."""

    def __init__(self, table, shapes, layers, heads):
        super().__init__()
        self.table = [[int(v) for v in row] for row in table]
        self.shapes = shapes
        self.layers = nn.ModuleList(layers)
        H, intercept, mix, row, scale, shift = heads
        self.head = nn.Parameter(H)
        self.head_intercept = nn.Parameter(intercept)
        self.register_buffer("mix", mix)
        self.register_buffer("row", row)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def features(self, X, lengths=None):
        """The trunk's features, (n, n_features)."""
        inputs = list(X) if isinstance(X, tuple | list) else [X]
        values = []
        for row, shape, layer in zip(self.table, self.shapes, self.layers):
            kind, below, second = row[0], row[2], row[3]
            if kind == 0:
                value = inputs.pop(0)
            elif kind == 4:
                value = torch.cat([values[below].flatten(1), values[second].flatten(1)], 1)
            elif kind == 2:
                value = layer(values[below].reshape(-1, *row[9:12]))
            elif kind in (5, 6, 7):
                value = layer(values[below], lengths)
            else:
                value = layer(values[below])
            if kind in (1, 2, 9):
                value = _Activation(row[1])(value)
            values.append(value.reshape(len(value), *shape))
        return values[-1].flatten(1)

    def forward(self, X, lengths=None):
        weights = torch.einsum("je,jef->jf", self.mix, self.head[self.row])
        intercept = (self.mix * self.head_intercept[self.row]).sum(1)
        return (self.features(X, lengths) @ weights.T + intercept) * self.scale + self.shift


def build(model):
    """Build the module of a fitted network."""
    state = model._state
    trunk = state.trunk

    def tensor(array):
        return torch.from_numpy(np.array(array))

    dtype = tensor(state.parameters[:1]).dtype
    layers = []
    for line, row in enumerate(trunk.table):
        kind = row[0]
        own = {
            name: tensor(state.parameters[where].reshape(shape))
            for name, where, shape in blocks(trunk, line)
        }
        layer = nn.Identity()
        if kind == 1:
            layer = nn.Linear(int(row[4]), int(row[5]), dtype=dtype)
            _set(layer, weight=own["kernel"].T, bias=own["bias"])
        elif kind == 2:
            sizes = int(row[11]), int(row[13]), int(row[12])
            conv = nn.Conv2d(*sizes, stride=int(row[14]), dtype=dtype)
            _set(conv, weight=own["kernel"].permute(3, 2, 0, 1), bias=own["bias"])
            layer = _ChannelsLast(nn.Sequential(nn.ZeroPad2d(conv_padding(row)), conv))
        elif kind == 3:
            layer = _ChannelsLast(nn.MaxPool2d(int(row[12])))
        elif kind == 8:
            layer = nn.Dropout(trunk.layers[line].rate)
        elif kind == 9:
            layer = nn.LayerNorm(int(row[5]), dtype=dtype)
            _set(layer, weight=own["gain"], bias=own["bias"])
        elif kind in (5, 6, 7):
            layer = _Recurrent(_recurrent(row, own, dtype), bool(row[12]))
        layers.append(layer)
    H, intercept = state.heads()
    units = state.units[state.kind].astype(H.dtype).T
    heads = (H, intercept, state.head_mix, state.head_row, *units)
    return NetworkModule(trunk.table, trunk.shapes, layers, [tensor(part) for part in heads])


def _recurrent(row, own, dtype):
    kind, d, u = int(row[0]), int(row[10]), int(row[11])
    layer = {5: nn.RNN, 6: nn.LSTM, 7: nn.GRU}[kind](d, u, batch_first=True, dtype=dtype)
    gates = own["kernel"].shape[1]
    hidden = torch.zeros(gates, dtype=dtype)
    if kind == 7:
        hidden[2 * u :] = own["bias"][3 * u :]
    _set(
        layer,
        weight_ih_l0=own["kernel"].T,
        weight_hh_l0=own["recurrent_kernel"].T,
        bias_ih_l0=own["bias"][:gates],
        bias_hh_l0=hidden,
    )
    # PyTorch's second bias repeats the first, but for the GRU's new gate: it stays at zero.
    if kind == 7:
        free = torch.zeros_like(hidden)
        free[2 * u :] = 1
        layer.bias_hh_l0.register_hook(lambda gradient: gradient * free)
    else:
        layer.bias_hh_l0.requires_grad_(False)
    return layer


def _set(layer, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(value)
