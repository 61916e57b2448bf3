"""A float graph with everything that joins channels, made by hand."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.measure.devices.networks import ProfiledNetwork, network_of

SIZE = 8
CLASSES = 10


def residual_graph() -> onnx.ModelProto:
    """stem 16, a residual block (inner 32, depthwise 32), a Concat of the block with a branch of 8, and a classifier.

    The classifier reads 24 maps of 4x4, flattened.
    """
    rng = np.random.default_rng(0)
    weights = {
        "stem": (16, 3, 3, 3),
        "expand": (32, 16, 1, 1),
        "depthwise": (32, 1, 3, 3),
        "project": (16, 32, 1, 1),
        "branch": (8, 16, 1, 1),
        "head": (CLASSES, 24 * 4 * 4),
    }
    initializers = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"{name}.weight")
        for name, shape in weights.items()
    ]
    initializers += [
        numpy_helper.from_array(rng.standard_normal(16).astype(np.float32), "stem.bias"),
        numpy_helper.from_array(np.ones((1, 16, 1, 1), np.float32), "gain"),
        numpy_helper.from_array(np.array([-1, 24 * 16], np.int64), "flat_shape"),
    ]
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight", "stem.bias"], ["s"], "stem", pads=[1] * 4),
        helper.make_node("Mul", ["s", "gain"], ["scaled"], "gain"),
        helper.make_node("Relu", ["scaled"], ["x"], "relu_0"),
        helper.make_node("Conv", ["x", "expand.weight"], ["e"], "expand"),
        helper.make_node("Relu", ["e"], ["er"], "relu_1"),
        helper.make_node("Conv", ["er", "depthwise.weight"], ["d"], "depthwise", pads=[1] * 4, group=32),
        helper.make_node("Relu", ["d"], ["dr"], "relu_2"),
        helper.make_node("Conv", ["dr", "project.weight"], ["p"], "project"),
        helper.make_node("Add", ["p", "x"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["y"], "relu_3"),
        helper.make_node("Conv", ["y", "branch.weight"], ["b"], "branch"),
        helper.make_node("Concat", ["y", "b"], ["c"], "concat", axis=1),
        helper.make_node("MaxPool", ["c"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["m", "flat_shape"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "head.weight"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def residual_network() -> ProfiledNetwork:
    """The same, ready to be measured."""
    return network_of("residual", residual_graph())
