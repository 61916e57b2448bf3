"""Layers that stay in float, and the additions beside them, against NumPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import ORT, TRT, Dialect
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.legalise.floats import with_float_layers, without_idle_additions, without_layers
from sbs_train.contract.grid import Quantizer
from tests.sbs_deploy.export.text_graphs import HEAD, execute, graph

LAYERS = ("w1", "w2", "w3", "w4", "w5")
BESIDE = {"s": {"w1", "w2", "w3", "w4"}, "u": {"w3", "w4", "w5"}}
"""Layers whose outputs a quantized addition reads, or that read its sum."""
RESIDUAL = (
    HEAD
    + """
g (float[N,3,2,2] input) => (float[N,3,2,2] logits) {
    a = Conv (input, w1)
    r = Relu (a)
    b = Conv (r, w2)
    s = Add (b, r)
    t = Relu (s)
    c = Conv (t, w3)
    d = Conv (t, w4)
    u = Add (c, d)
    logits = Conv (u, w5)
}"""
)
SIGNED = Quantizer(step=0.05, code_min=-120, code_max=120)
POSITIVE = Quantizer(step=0.04, code_min=0, code_max=15)
INPUTS = {"w1": SIGNED, "w2": POSITIVE, "w3": POSITIVE, "w4": POSITIVE, "w5": SIGNED}


def residual(seed: int) -> tuple[Any, Codes]:
    rng = np.random.default_rng(seed)
    layers = {
        name: QuantizedLayer(
            codes=rng.integers(-128, 128, (3, 3, 1, 1)).astype(np.int8),
            scale_O=rng.uniform(0.002, 0.006, 3).astype(np.float32),
            input=quantizer,
        )
        for name, quantizer in INPUTS.items()
    }
    floats = {name: weights(layer) for name, layer in layers.items()}
    return graph(RESIDUAL, **floats), Codes(layers=layers, adds={"s": (SIGNED, POSITIVE), "u": (SIGNED, SIGNED)})


def weights(layer: QuantizedLayer) -> np.ndarray:
    return layer.codes.astype(np.float32) * layer.scale_O.reshape(-1, 1, 1, 1)


def by_hand(codes: Codes, floats: set[str], x: np.ndarray) -> np.ndarray:
    def rounded(x: np.ndarray, to: Quantizer) -> np.ndarray:
        step = np.float32(to.step)
        return np.clip(np.rint(x / step), to.code_min, to.code_max).astype(np.float32) * step

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        one = codes.layers[name]
        x = x if name in floats else rounded(x, one.input)
        return np.einsum("oi,nihw->nohw", weights(one)[..., 0, 0], x)

    def added(name: str, *operands: np.ndarray) -> np.ndarray:
        if not BESIDE[name] <= floats:
            operands = tuple(rounded(x, to) for x, to in zip(operands, codes.adds[name], strict=True))
        return operands[0] + operands[1]

    r = np.maximum(layer("w1", x), 0)
    t = np.maximum(added("s", layer("w2", r), r), 0)
    return layer("w5", added("u", layer("w3", t), layer("w4", t)))


@pytest.mark.parametrize("dialect", [TRT, ORT], ids=["trt", "ort"])
@settings(deadline=None, max_examples=60)
@given(floats=st.sets(st.sampled_from(LAYERS)), seed=st.integers(0, 3))
def test_any_subset_is_the_plan_without_its_quantizers(dialect: Dialect, floats: set[str], seed: int) -> None:
    slim, codes = residual(seed)
    x = np.random.default_rng(seed).standard_normal((4, 3, 2, 2)).astype(np.float32)
    model = quantized_onnx(slim, with_float_layers(codes, floats, slim), dialect, plan_sha256="ab")
    np.testing.assert_allclose(execute(model, x), by_hand(codes, floats, x), rtol=1e-4, atol=1e-5)
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in model.graph.initializer}
    assert {name for name in LAYERS if stored[f"{name}.weight"] == np.float32} == floats


def test_all_layers_in_float_is_the_slim_network() -> None:
    slim, codes = residual(0)
    left = with_float_layers(codes, LAYERS, slim)
    assert left == Codes(layers={}, adds={})
    assert not [n for n in quantized_onnx(slim, left, ORT, plan_sha256="").graph.node if "Quantize" in n.op_type]


def test_an_addition_that_no_layer_touches_ends_the_search() -> None:
    """The stream behind it has quantizers of its own."""
    slim, codes = residual(0)
    assert list(with_float_layers(codes, {"w1", "w2", "w3", "w4"}, slim).adds) == ["u"]


def test_additions_stay_where_only_layers_are_taken_out() -> None:
    _, codes = residual(0)
    left = without_layers(codes, {"w1"})
    assert list(left.layers) == ["w2", "w3", "w4", "w5"] and left.adds == codes.adds


def test_additions_between_matrix_products_are_idle() -> None:
    """All but the last, whose sum a convolution reads, and that too if the convolution reads something else."""
    products = RESIDUAL.replace("Conv (input,", "MatMul (input,")
    for name in ("r", "t"):
        products = products.replace(f"Conv ({name},", f"MatMul ({name},")
    _, codes = residual(0)
    shapes = {name: weights(layer) for name, layer in codes.layers.items()}
    square = {name: array if name == "w5" else np.zeros((2, 2), np.float32) for name, array in shapes.items()}
    left = without_idle_additions(codes, graph(products, **square))
    assert list(left.adds) == ["u"] and left.layers == codes.layers
    behind_exp = products.replace("logits = Conv (u,", "p = Exp (u)\n    logits = Conv (p,")
    assert not without_idle_additions(codes, graph(behind_exp, **square)).adds
    assert without_idle_additions(codes, residual(0)[0]) == codes
