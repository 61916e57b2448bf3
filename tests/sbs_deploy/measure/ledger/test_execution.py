from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.legalise.half import half_precision
from sbs_deploy.measure.ledger.execution import Execution, executions
from tests.sbs_deploy.graphs import CLASSES, CONVOLUTIONS, float_model, qdq_model

LAYERS = [*CONVOLUTIONS, "fc"]
# By hand: 3x3 convolutions 3 -> 16 -> 32 -> 16 over 8x8 images, then 16 values to 10 classes.
WEIGHTS = {"conv1": 3 * 16 * 9, "conv2": 16 * 32 * 9, "conv3": 32 * 16 * 9, "fc": 16 * CLASSES}
MACS = {name: weights * (1 if name == "fc" else 64) for name, weights in WEIGHTS.items()}
VALUES = {"conv1": (192, 1024), "conv2": (1024, 2048), "conv3": (2048, 1024), "fc": (16, CLASSES)}


@pytest.mark.parametrize("dialect", ["trt", "ort"])
def test_a_quantized_graph(dialect: Literal["trt", "ort"]) -> None:
    found = executions(qdq_model(dialect), LAYERS)
    assert list(found) == LAYERS
    for name, run in found.items():
        bits = 32 if name == "fc" else 8
        assert (run.bits_w, run.bits_a, run.weights, run.macs) == (bits, bits, WEIGHTS[name], MACS[name])
        assert (run.inputs, run.outputs) == VALUES[name]


def test_a_float_graph_and_one_in_half() -> None:
    for model, bits in ((float_model(), 32), (half_precision(float_model()), 16)):
        assert {(run.bits_w, run.bits_a) for run in executions(model, LAYERS).values()} == {(bits, bits)}


def test_intensity_is_products_over_bytes() -> None:
    run = Execution(bits_w=8, bits_a=8, weights=1000, inputs=100, outputs=300, macs=7000.0)
    assert run.intensity(1) == 7000 / 1400
    assert run.intensity(10) == 70000 / 5000, "weights are read once a batch"
    assert Execution(bits_w=8, bits_a=8, weights=1, inputs=None, outputs=1, macs=None).intensity(1) is None


def weights_of(shape: tuple[int, ...]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32), "layer.weight")


@pytest.mark.parametrize(
    ("node", "shape", "image", "output", "macs"),
    [
        # Depthwise: 9 products for each of 6 * 4 * 4 values.
        (("Conv", {"group": 6, "pads": [1, 1, 1, 1]}), (6, 1, 3, 3), (6, 4, 4), (6, 4, 4), 9 * 6 * 16),
        # Stride 2 with 2x2 filters: every input meets every filter once.
        (("ConvTranspose", {"strides": [2, 2]}), (6, 5, 2, 2), (6, 4, 4), (5, 8, 8), 6 * 16 * 5 * 4),
        (("Gemm", {"transB": 1}), (7, 6), (6,), (7,), 42),
        (("Gemm", {}), (6, 7), (6,), (7,), 42),
        (("MatMul", {}), (6, 7), (3, 6), (3, 7), 3 * 42),
    ],
)
def test_products_by_hand(
    node: tuple[str, dict[str, Any]], shape: tuple[int, ...], image: tuple[int, ...], output: tuple[int, ...], macs: int
) -> None:
    kind, attributes = node
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "layer.weight"], ["y"], name="anything", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *image])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *output])],
        [weights_of(shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    run = executions(model, ["layer"])["layer"]
    assert run.macs == macs
    assert (run.inputs, run.outputs) == (np.prod(image), np.prod(output))
