"""An error of the rules is what the engines do, on generated graphs: none is missed and none is false.

What ONNX Runtime should compute is what it computes node by node. It chooses its integer kernels by architecture alone,
so that its verdicts hold on x86 with and without VNNI; without VNNI its products saturate in pairs besides, which the
option session.x64quantprecision prevents here.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnx.reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_deploy.lint.fix import repair
from sbs_deploy.lint.run import lint_model
from tests.sbs_deploy.lint.generate import SHAPES, Spec, model_of
from tests.sbs_deploy.lint.runtimes import rtx, session

PRODUCERS = ("initializer", "Constant", "Identity", "Transpose", "Transpose codes", "Reshape")
BIASES = ("none", "small", "int32", "coarse int32", "dead", "large")
BEHIND = ("Q", "float", "Relu", "full Relu", "two readers", "output")
OFF, STEP = 0.02, 0.07
"""Of the largest output; and one step of the codes, which a rounded bias can move. A misread scale moves many."""


def forms() -> Iterator[Spec]:
    """Every operator with every shape and axis of scales."""
    for operator, shape in SHAPES.items():
        yield Spec(operator=operator, scales="scalar")
        yield Spec(operator=operator, scales="one")
        for axis in range(len(shape)):
            yield Spec(operator=operator, scales="axis", axis=axis)
            yield Spec(operator=operator, scales="blocked", axis=axis)


FORMS = list(forms())
specs = st.builds(
    replace,
    st.sampled_from(FORMS),
    producer=st.sampled_from(PRODUCERS),
    bias=st.sampled_from(BIASES),
    behind=st.sampled_from(BEHIND),
    unsigned=st.booleans(),
)


def outputs(model: onnx.ModelProto, *, optimized: bool) -> np.ndarray | None:
    """All values that a model computes; None where ONNX Runtime refuses."""
    try:
        runner = session(model, optimized=optimized)
        (x,) = runner.get_inputs()
        dims = [size if isinstance(size, int) else 2 for size in x.shape]
        feed = {x.name: np.random.default_rng(0).standard_normal(dims).astype(np.float32)}
        return np.concatenate([np.ravel(found) for found in runner.run(None, feed)])
    except Exception:  # noqa: BLE001  # onnxruntime's errors have no common base
        return None


def off(found: np.ndarray | None, expected: np.ndarray | None) -> bool:
    """Whether an answer is missing or wrong."""
    assert expected is not None
    return found is None or bool(np.abs(found - expected).max() > STEP + OFF * np.abs(expected).max())


def errors(model: onnx.ModelProto, rules: str) -> set[str]:
    found = lint_model(model, (rules,)).findings  # type: ignore[arg-type]  # one of the two names
    return {finding.rule.id for finding in found if finding.rule.severity == "error"}


def agrees_with_onnxruntime(spec: Spec) -> None:
    model = model_of(spec)
    exact = outputs(model, optimized=False)
    found = errors(model, "ort")
    assert off(outputs(model, optimized=True), exact) == bool(found), (spec, found)
    repaired, fixed = repair(model, ("ort",))
    if repaired:
        np.testing.assert_array_equal(outputs(fixed, optimized=False), exact)
        assert off(outputs(fixed, optimized=True), exact) == bool(errors(fixed, "ort")), spec


def builds_as_said(model: onnx.ModelProto, spec: Spec) -> None:
    """TensorRT-RTX refuses what has an error. Codes of uint8 alone may build all the same: they saturate at 127."""
    plan, words = rtx(model, ("SM89",))
    found = errors(model, "trt")
    assert found if plan is None else found <= {"uint8"}, (spec, found, words)


def agrees_with_tensorrt(spec: Spec) -> None:
    model = model_of(spec)
    builds_as_said(model, spec)
    repaired, fixed = repair(model, ("trt",))
    if repaired:
        np.testing.assert_array_equal(outputs(fixed, optimized=False), outputs(model, optimized=False))
        builds_as_said(fixed, spec)


@settings(max_examples=80, deadline=None)
@given(spec=specs)
def test_some_of_onnxruntime(spec: Spec) -> None:
    agrees_with_onnxruntime(spec)


@settings(max_examples=12, deadline=None)
@given(spec=specs)
def test_some_of_tensorrt(spec: Spec) -> None:
    agrees_with_tensorrt(spec)


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(spec=specs)
def test_many_of_onnxruntime(spec: Spec) -> None:
    agrees_with_onnxruntime(spec)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(spec=specs)
def test_many_of_tensorrt(spec: Spec) -> None:
    agrees_with_tensorrt(spec)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm", "GemmT", "MatMul"])
@pytest.mark.parametrize("scale", [0.0, -0.01])
@pytest.mark.parametrize("bias", ["none", "small"])
def test_scales_that_are_not_positive(operator: str, scale: float, bias: str) -> None:
    spec = Spec(operator=operator, bias=bias)
    model = model_of(replace(spec, axis=spec.outputs))
    (held,) = (tensor for tensor in model.graph.initializer if tensor.name == "w.scale")
    values = np.array(onnx.numpy_helper.to_array(held))
    values[0] = scale
    held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))
    exact = outputs(model, optimized=False)
    assert off(outputs(model, optimized=True), exact) == bool(errors(model, "ort"))
    assert "scale" in errors(model, "trt")
    fixed = repair(model, ("trt",))[1]
    assert not errors(fixed, "trt")
    np.testing.assert_allclose(outputs(fixed, optimized=False), exact, rtol=0, atol=1e-6)


def test_the_reference_is_that_of_onnx() -> None:
    """Node by node ONNX Runtime computes what ONNX's own evaluator does."""
    for spec in (Spec(), Spec(operator="GemmT", axis=1), Spec(operator="MatMul", scales="blocked")):
        model = model_of(spec)
        noise = np.random.default_rng(0).standard_normal((2, 3, 6, 6) if spec.kind == "Conv" else (2, 16))
        x = noise.astype(np.float32)
        (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})
        np.testing.assert_allclose(session(model).run(None, {"x": x})[0], expected, atol=1e-5)
