"""What the rules say of TensorRT and ONNX Runtime is what these do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sbs_deploy.lint.rules import RULES
from tests.sbs_deploy.lint.cases import cases, half_quantized
from tests.sbs_deploy.lint.nets import CHANNELS, codes, net
from tests.sbs_deploy.lint.runtimes import operators, rtx, rtx_types, run, session

CASES = [(f"{target}-{rule}-{i}", rule, target, bad, good) for i, (rule, target, bad, good) in enumerate(cases())]
REFUSED = [rule.id for rule in RULES if rule.severity == "error" and "trt" in rule.dialects]
ELSEWHERE = ("uint8", "opset-axis")
"""Errors that TensorRT does not refuse but reads in its own way."""
IN_FLOAT = ("blocked-fusion", "float-output", "float-island", "residual", "int8-activation")
EFFECT = {(rule.id, target): rule.effect for rule in RULES for target in rule.dialects}


def chosen(target: str, *rules: str) -> list[Any]:
    return [pytest.param(*row[1:], id=row[0]) for row in CASES if row[2] in (target, "both") and row[1] in rules]


def quoted(rule: str, target: str) -> list[str]:
    return re.findall("`(.*?)`", EFFECT[rule, target])


@pytest.mark.parametrize(("rule", "_", "bad", "good"), chosen("trt", *(r for r in REFUSED if r not in ELSEWHERE)))
def test_tensorrt_refuses(rule: str, _: str, bad: onnx.ModelProto, good: onnx.ModelProto) -> None:
    plan, words = rtx(bad, ("SM89",))  # where FP8 can be built too
    assert plan is None
    own = quoted(rule, "trt")
    assert not own or any(quote in words for quote in own), words
    plan, words = rtx(good, ("SM89",))
    assert plan is not None, words


def test_tensorrt_takes_uint8_for_int8_and_refuses_such_weights() -> None:
    plan, words = rtx(net(middle={"dtype": np.uint8}))
    assert plan is not None
    assert "Defaulting to INT8" in words
    plan, words = rtx(net(w={"dtype": np.uint8}, weights=abs(codes())))
    assert plan is None
    assert quoted("uint8", "trt")[1] in words


def test_fp8_needs_a_newer_gpu() -> None:
    fp8 = next(bad for _, rule, _, bad, _ in CASES if rule == "fp8")
    assert rtx(fp8, ("SM89",))[0] is not None
    plan, words = rtx(fp8, ("SM80",))
    assert plan is None
    assert quoted("fp8", "trt")[0] in words


@pytest.mark.parametrize(
    ("rule", "_", "bad", "good"), chosen("trt", "per-channel-activation", "weight-axis", "half-quantized")
)
def test_tensorrt_computes_in_float(rule: str, _: str, bad: onnx.ModelProto, good: onnx.ModelProto) -> None:
    assert ("float", "float") in rtx_types(bad)
    assert rtx_types(good) == {("int8", "int8")}


def test_before_opset_13_the_two_targets_choose_another_axis() -> None:
    def old(count: int) -> onnx.ModelProto:
        weights = {"axis": None, "scale": np.linspace(0.01, 0.05, count)}
        return net(opset=12, w=weights, weights=codes(24, CHANNELS))

    along_inputs = net(w={"axis": 1, "scale": np.linspace(0.01, 0.05, CHANNELS)}, weights=codes(24, CHANNELS))
    np.testing.assert_array_equal(run(old(CHANNELS)), run(along_inputs))
    with pytest.raises(Exception, match="scale must be 1D tensor with size 16"):
        run(old(24))
    assert rtx(old(24))[0] is not None
    assert "Number of output channels = 24, number of scales = 16" in rtx(old(CHANNELS))[1]


@pytest.mark.parametrize(("rule", "_", "bad", "good"), chosen("ort", *IN_FLOAT, "code-type", "per-channel-activation"))
def test_onnxruntime_keeps_a_convolution_in_float(
    rule: str, _: str, bad: onnx.ModelProto, good: onnx.ModelProto, tmp_path: Path
) -> None:
    assert operators(bad, tmp_path).count("QLinearConv") < operators(good, tmp_path).count("QLinearConv")


def test_a_float_input_keeps_a_convolution_in_float(tmp_path: Path) -> None:
    assert "QLinearConv" not in operators(half_quantized("input"), tmp_path)


@pytest.mark.parametrize(("rule", "_", "bad", "good"), chosen("ort", "opset-type", "bf16"))
def test_onnxruntime_does_not_load(rule: str, _: str, bad: onnx.ModelProto, good: onnx.ModelProto) -> None:
    with pytest.raises(Exception, match=re.escape(quoted(rule, "ort")[0])):
        session(bad)
    if good.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.BFLOAT16:  # valid, but of no kernel
        session(good)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        pytest.param(*next(row[3:] for row in CASES if row[:2] == (row[0], rule) and row[2] == "ort"), id=rule)
        for rule in ("weight-axis", "bias-overflow", "half-quantized")
    ],
)
def test_onnxruntime_computes_something_else(bad: onnx.ModelProto, good: onnx.ModelProto) -> None:
    """Than it does with optimizations off."""

    def difference(model: onnx.ModelProto) -> float:
        exact = run(model)
        return float(np.abs(run(model, optimized=True) - exact).mean() / np.abs(exact).mean())

    assert difference(bad) > 5 * difference(good)


def test_a_scale_of_zero_leaves_nothing() -> None:
    assert not np.any(np.nan_to_num(run(net(x={"scale": 0.0}))))
    assert np.any(run(net()))


def test_fp16_convolutions_run_in_float32(tmp_path: Path) -> None:
    assert operators(net(real=np.float16), tmp_path).count("Cast") > operators(net(), tmp_path).count("Cast")
