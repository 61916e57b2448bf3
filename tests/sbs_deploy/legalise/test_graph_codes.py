"""Promoted grids against their definition, and layers taken out."""

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import ORT, TRT, Dialect
from sbs_deploy.legalise.graph import ceilings_of, promoted
from sbs_train.contract.grid import Quantizer, activation_role, make_grid


def quantizer(bits: int, signed: bool, clip: float) -> Quantizer:
    level = make_grid(activation_role(signed), (2, 4, 8)).level(bits)
    return level.quantizer(clip)


def codes(*quantizers: Quantizer) -> Codes:
    weights = np.zeros((4, 2, 1, 1), np.int8)
    layers = {
        f"layer{i}": QuantizedLayer(codes=weights, scale_O=np.ones(4, np.float32), input=one)
        for i, one in enumerate(quantizers)
    }
    return Codes(layers=layers, adds={"add": (quantizers[0], quantizers[-1])})


def rounded(x: np.ndarray, to: Quantizer) -> np.ndarray:
    return np.clip(np.rint(x / to.step), to.code_min, to.code_max) * to.step


@pytest.mark.parametrize("dialect", [TRT, ORT], ids=["trt", "ort"])
@given(bits=st.sampled_from([2, 4]), signed=st.booleans(), clip=st.floats(0.01, 100))
def test_a_promoted_grid_is_finer_and_saturates_at_the_same_value(
    dialect: Dialect, bits: int, signed: bool, clip: float
) -> None:
    before = quantizer(bits, signed, clip)
    result = promoted(codes(before), dialect)
    for after in (result.layers["layer0"].input, *result.adds["add"]):
        assert after.code_max * after.step == pytest.approx(clip)
        assert (after.code_min, after.code_max) == (
            dialect.container_range(signed) if signed else (0, dialect.container_range(False)[1])
        ), "all of the container: no Clip"
        x = np.linspace(0 if not signed else -clip, clip, 1001)
        assert np.abs(rounded(x, after) - x).max() <= after.step / 2 + 1e-9 * clip
        assert np.abs(rounded(x, after) - x).mean() < 0.2 * np.abs(rounded(x, before) - x).mean()


@given(bits=st.sampled_from([4, 8]), clip=st.floats(0.5, 100), ceiling=st.floats(0.5, 100))
def test_codes_beyond_what_a_clip_leaves_are_not_given(bits: int, clip: float, ceiling: float) -> None:
    one = quantizer(bits, False, clip)
    end = one.step * one.code_max  # codes of 8 bits go a little further than the clip value
    after = promoted(codes(one, one), ORT, ceilings={"layer0": ceiling})
    own, other = (after.layers[name].input for name in ("layer0", "layer1"))
    assert own.code_max * own.step == pytest.approx(min(end, ceiling))
    assert other.code_max * other.step == pytest.approx(end), "of another layer"


def test_ceilings_are_those_of_all_calls_of_a_layer() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,2,4,4] input) => (float[N,2,4,4] logits) <float zero = {0}, float six = {6}, float four = {4}> {
            a = Clip (input, zero, six)
            b = Clip (input, zero, four)
            c = Conv (a, w1)
            d = Conv (b, w1)
            e = Conv (a, w2)
            logits = Conv (input, w2)
        }"""
    )
    for name in ("w1", "w2"):
        for node in model.graph.node:
            node.input[:] = [f"{name}.weight" if used == name else used for used in node.input]
    assert ceilings_of(model) == {"w1": 6.0, "w2": math.inf}


def test_8_bits_stay_what_they_are_in_int8() -> None:
    before = codes(quantizer(8, False, 2.0), quantizer(8, True, 3.0))
    after = promoted(before, TRT)
    assert after.adds == before.adds
    assert all(after.layers[name].input == before.layers[name].input for name in before.layers)
