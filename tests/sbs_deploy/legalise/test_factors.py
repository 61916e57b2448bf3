"""Factors behind convolutions are folded without changing what a graph computes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.graph.run import run_graph
from sbs_deploy.legalise.factors import with_folded_factors
from sbs_train.contract.grid import Quantizer, range_quantizer

INPUT, OUTPUT = "input", "logits"

CHANNELS = 6
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8)
SCALE = RNG.uniform(0.001, 0.01, CHANNELS).astype(np.float32)
BY_CHANNEL = np.array([0.5, -2, 1e-6, 3, -0.1, 1], np.float32).reshape(1, -1, 1, 1)


def graph(factor: np.ndarray, *, factor_first: bool = False, read_twice: bool = False) -> onnx.ModelProto:
    """Two convolutions that share a bias, each times the factor."""
    bias = RNG.normal(0, 0.5, CHANNELS).astype(np.float32)
    weight = CODES * SCALE[:, None, None, None]
    tensors = {"a.weight": weight, "b.weight": weight.copy(), "bias": bias, "f": factor}
    nodes = []
    for name, x in (("a", INPUT), ("b", "a*")):
        nodes.append(helper.make_node("Conv", [x, f"{name}.weight", "bias"], [name], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Mul", ["f", name] if factor_first else [name, "f"], [f"{name}*"]))
    nodes.append(helper.make_node("Add", ["b*", "a" if read_twice else "a*"], [OUTPUT]))
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", CHANNELS, 5, 5])] for n in (INPUT, OUTPUT)]
    made = helper.make_graph(nodes, "factors", *ends, [numpy_helper.from_array(v, n) for n, v in tensors.items()])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def codes(names: str = "ab") -> Codes:
    layer = QuantizedLayer(
        codes=CODES, scale_O=SCALE, input=Quantizer(step=0.1, code_min=0, code_max=127), output=range_quantizer(-3, 1)
    )
    return Codes(layers=dict.fromkeys(names, layer))


def muls(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Mul" for node in model.graph.node)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("factor", [BY_CHANNEL, BY_CHANNEL[0], np.float32(-0.7)], ids=["NCHW", "CHW", "number"])
def test_folded_factors_leave_the_function_and_the_codes(factor: np.ndarray, first: bool) -> None:
    before = graph(np.asarray(factor), factor_first=first)
    after, folded = with_folded_factors(before, codes())
    onnx.checker.check_model(after, full_check=True)
    x = RNG.standard_normal((2, CHANNELS, 5, 5)).astype(np.float32)
    expected, found = (run_graph(model, [OUTPUT], {"input": x}, "none")[OUTPUT] for model in (before, after))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert muls(after) == 0
    factor_O = np.broadcast_to(np.asarray(factor).reshape(-1), CHANNELS)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for name, layer in folded.layers.items():
        np.testing.assert_array_equal(np.abs(layer.codes), np.abs(CODES))
        np.testing.assert_allclose(layer.codes * layer.scale_O[:, None, None, None], weights[f"{name}.weight"], 1e-6)
        assert layer.output is not None
        low, high = (layer.output.step * code for code in (layer.output.code_min, layer.output.code_max))
        assert low <= min(-3 * factor_O.max(), factor_O.min()) * 0.99
        assert high >= max(factor_O.max(), -3 * factor_O.min()) * 0.99


def test_other_factors_stay() -> None:
    zero = BY_CHANNEL.copy()
    zero[0, 0] = 0
    by_column = np.arange(1, 6, dtype=np.float32)
    for factor in (zero, by_column):
        assert muls(with_folded_factors(graph(factor), codes())[0]) == 2
    after, folded = with_folded_factors(graph(BY_CHANNEL, read_twice=True), codes("a"))
    assert muls(after) == 2 and folded == codes("a")  # the Add reads `a` too, and `b` is in float
