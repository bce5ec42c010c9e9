"""Fitted linear models and networks as ONNX graphs; imported only when asked for."""

from __future__ import annotations

import json

import numpy as np

try:
    import onnx
    from onnx import helper, numpy_helper
except ImportError as error:
    raise ImportError("to_onnx needs onnx; install it with: pip install 'fastmtl[onnx]'") from error

import fastmtl
from fastmtl.layers import blocks, conv_padding

__all__ = ["export"]

OPSET, IR_VERSION = 17, 8
FLOAT = onnx.TensorProto.FLOAT
ACTIVATIONS = {1: ("Relu", {}), 2: ("LeakyRelu", {"alpha": 0.01}), 3: ("Tanh", {})}
ACTIVATIONS[4] = ("Sigmoid", {})
# Blocks of units in the order of ONNX, by their place in ours.
GATES = {5: ("RNN", [0]), 6: ("LSTM", [0, 3, 1, 2]), 7: ("GRU", [1, 0, 2])}


class _Graph:
    """Nodes and constants as they are added; names are numbers."""

    def __init__(self):
        self.nodes, self.constants, self.inputs, self.outputs = [], [], [], []
        self.count = 0

    def name(self):
        self.count += 1
        return f"t{self.count}"

    def constant(self, value):
        value = np.asarray(value)
        if value.dtype.kind == "f":
            value = value.astype(np.float32)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), self.name()))
        return self.constants[-1].name

    def add(self, op, *inputs, n_outputs=1, **attributes):
        outputs = [self.name() for _ in range(n_outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0] if n_outputs == 1 else outputs

    def input(self, name, shape, kind=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["n", *shape]))
        return name

    def output(self, name, value, shape):
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, FLOAT, ["n", *shape]))

    def reshape(self, value, shape):
        return self.add("Reshape", value, self.constant(np.array([-1, *shape], np.int64)))


def export(model):
    """Build the graph of a fitted linear model or network."""
    graph = _Graph()
    network = hasattr(model._state, "trunk")
    features = _trunk(graph, model) if network else graph.input("X", [model.n_features_in_])
    weights = np.asarray(model._weights(), dtype=np.float32)
    product = graph.add("MatMul", features, graph.constant(weights[:, :-1].T))
    _answers(graph, model, graph.add("Add", product, graph.constant(weights[:, -1])), len(weights))
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            graph.inputs,
            graph.outputs,
            initializer=graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fastmtl",
        producer_version=fastmtl.__version__,
    )
    helper.set_model_props(made, {"tasks": json.dumps(model.tasks_.tolist(), default=str)})
    onnx.checker.check_model(made)
    return made


def _answers(graph, model, scores, n_outputs):
    classes, losses = getattr(model, "task_classes_", None), _losses(model)
    if classes is None:
        predictions = graph.add("Exp", scores) if losses[0] == "poisson" else scores
        graph.output("predictions", predictions, [n_outputs])
        return
    graph.output("scores", scores, [n_outputs])
    starts = model._state.head_start
    if getattr(model, "_one_output", False):
        if losses[0] == "log_loss":
            second = graph.reshape(graph.add("Sigmoid", scores), [n_outputs, 1])
            both = graph.add("Sub", graph.constant(np.ones(1)), second), second
            graph.output("probabilities", graph.add("Concat", *both, axis=2), [n_outputs, 2])
        return
    sizes = graph.constant(np.diff(starts).astype(np.int64))
    if len(classes) == 1:
        parts = [scores]
    else:
        parts = graph.add("Split", scores, sizes, n_outputs=len(classes), axis=1)
    for t, (part, loss) in enumerate(zip(parts, losses)):
        width = int(starts[t + 1] - starts[t])
        if loss == "log_loss":
            graph.output(f"probabilities_{t}", graph.add("Softmax", part, axis=1), [width])
        else:
            rates = graph.add("Exp", part) if loss == "poisson" else part
            graph.output(f"predictions_{t}", rates, [width])


def _losses(model):
    if hasattr(model, "_losses_of"):
        return model._losses_of(model.tasks_)
    return [model.loss] * model.n_tasks_


def _trunk(graph, model):
    """Add the layers; return the name of the features."""
    trunk, parameters = model._state.trunk, model._state.parameters
    shapes = model._state.shapes
    names = ["X"] if len(shapes) == 1 else [f"X_{i}" for i in range(len(shapes))]
    inputs = [graph.input(name, shape) for name, shape in zip(names, shapes)]
    lengths = graph.input("lengths", [], onnx.TensorProto.INT32) if model._has_lengths else ""
    values = []
    for line, row in enumerate(trunk.table):
        row = [int(v) for v in row]
        kind, below = row[0], values[row[2]] if row[2] >= 0 else None
        own = {name: parameters[where].reshape(shape) for name, where, shape in blocks(trunk, line)}
        if kind == 0:
            value = inputs.pop(0)
        elif kind == 1:
            product = graph.add("MatMul", below, graph.constant(own["kernel"]))
            value = graph.add("Add", product, graph.constant(own["bias"]))
        elif kind in (2, 3):
            value = _window(graph, row, own, below)
        elif kind == 4:
            flat = [graph.reshape(values[k], [int(trunk.table[k, 5])]) for k in row[2:4]]
            value = graph.add("Concat", *flat, axis=1)
        elif kind in GATES:
            value = _recurrent(graph, row, own, below, lengths)
        elif kind == 9:
            gain, bias = (graph.constant(own[name]) for name in ("gain", "bias"))
            value = graph.add("LayerNormalization", below, gain, bias, axis=-1, epsilon=1e-5)
        else:  # dropout
            value = below
        values.append(graph.reshape(_activate(graph, row[1], value), trunk.shapes[line]))
    return graph.reshape(values[-1], [trunk.n_features])


def _activate(graph, code, value):
    if code in ACTIVATIONS:
        op, attributes = ACTIVATIONS[code]
        return graph.add(op, value, **attributes)
    if code == 5:  # gelu: ½ x (1 + erf(x / √2))
        erf = graph.add("Erf", graph.add("Mul", value, graph.constant(np.sqrt([0.5]))))
        scale = graph.add("Add", erf, graph.constant(np.ones(1)))
        return graph.add("Mul", graph.add("Mul", value, scale), graph.constant(np.full(1, 0.5)))
    return value


def _window(graph, row, own, below):
    """A convolution or pooling, channels first inside."""
    image = graph.add("Transpose", graph.reshape(below, row[9:12]), perm=[0, 3, 1, 2])
    side = [row[12]] * 2
    if row[0] == 3:
        value = graph.add("MaxPool", image, kernel_shape=side, strides=side)
    else:
        left, right, top, bottom = conv_padding(row)
        kernel = graph.constant(own["kernel"].transpose(3, 2, 0, 1))
        value = graph.add(
            "Conv",
            image,
            kernel,
            graph.constant(own["bias"]),
            kernel_shape=side,
            strides=[row[14]] * 2,
            pads=[top, left, bottom, right],
        )
    return graph.add("Transpose", value, perm=[0, 2, 3, 1])


def _recurrent(graph, row, own, below, lengths):
    op, order = GATES[row[0]]
    units, gates = row[11], len(order)

    def ordered(matrix):
        """(d, gates · units) as (1, gates · units, d), gates in the order of ONNX."""
        parts = np.split(matrix, gates, axis=1)
        return np.hstack([parts[k] for k in order]).T[None]

    inner = np.zeros(gates * units)
    if op == "GRU":
        inner[2 * units :] = own["bias"][gates * units :]
    bias = np.vstack([own["bias"][: gates * units], inner])
    bias = ordered(bias)[0].T.reshape(1, -1)
    attributes = {"hidden_size": units} | ({"linear_before_reset": 1} if op == "GRU" else {})
    states, last = graph.add(
        op,
        graph.add("Transpose", below, perm=[1, 0, 2]),
        graph.constant(ordered(own["kernel"])),
        graph.constant(ordered(own["recurrent_kernel"])),
        graph.constant(bias),
        lengths,
        n_outputs=2,
        **attributes,
    )
    axis = graph.constant(np.array([1 if row[12] else 0], np.int64))
    if not row[12]:
        return graph.add("Squeeze", last, axis)
    return graph.add("Transpose", graph.add("Squeeze", states, axis), perm=[1, 0, 2])
