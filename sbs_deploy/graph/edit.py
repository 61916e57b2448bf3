"""Small queries and insertions for ONNX graphs. No torch: this runs on devices."""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

NOT_NEGATIVE = ("Relu", "Sigmoid", "Softmax")
KEEPS_SIGN = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Identity", "Dropout")


def not_negative(x: ir.Value) -> bool:
    """Whether `x` is known to have no negative values, by the operators that write it."""
    node = x.producer()
    while node is not None and node.op_type in KEEPS_SIGN:
        first = node.inputs[0]
        node = first.producer() if first is not None else None
    if node is None or node.op_type != "Clip":
        return node is not None and node.op_type in NOT_NEGATIVE
    return bool(clip_before(node.outputs[0])[1][0] >= 0)


def clip_before(x: ir.Value) -> tuple[ir.Value | None, npt.NDArray[np.float32]]:
    """(input, ends) of the Clip with constant ends that writes `x`; None and infinities if there is none."""
    everything = np.array([-np.inf, np.inf], np.float32)
    node = x.producer()
    if node is None or node.op_type != "Clip":
        return None, everything
    bounds_2 = everything.copy()
    for index, bound in enumerate(node.inputs[1:3]):
        value = ir.convenience.get_const_tensor(bound) if bound is not None else None
        if bound is not None and value is None:
            return None, everything
        if value is not None:
            bounds_2[index] = value.numpy()
    return node.inputs[0], bounds_2


def input_name(node: ir.Node, index: int) -> str:
    """The name of input `index` of a node; empty if the node has no such input."""
    value = node.inputs[index] if len(node.inputs) > index else None
    return (value.name if value is not None else None) or ""


def constant(graph: ir.Graph, name: str, value: npt.NDArray[np.generic] | np.generic) -> ir.Value:
    """Add an initializer to a graph."""
    tensor = ir.Tensor(np.asarray(value), name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant


def insert(
    graph: ir.Graph, before: ir.Node, op_type: str, inputs: list[ir.Value], output: str, **attributes: int
) -> ir.Value:
    """Insert a new node before the node `before`; returns its output, named `output`."""
    node = ir.node(op_type, inputs, attributes, name=output, outputs=[ir.Value(name=output)])
    graph.insert_before(before, node)
    return node.outputs[0]
