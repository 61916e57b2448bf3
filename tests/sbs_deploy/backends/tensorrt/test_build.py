"""Builds with the real TensorRT-RTX, which needs no GPU, and with fakes of TensorRT 10 and 11."""

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.base import BuiltEngine
from sbs_deploy.backends.request import RTX_COMPUTE_CAPABILITIES, BatchProfile, BuilderSettings, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import TENSORRT, TENSORRT_RTX, import_problem
from sbs_deploy.backends.tensorrt import build as backend
from sbs_deploy.backends.tensorrt import log as trt_log
from sbs_deploy.backends.tensorrt import runtime as trt_runtime
from sbs_deploy.backends.tensorrt.plan_text import low_precision_convolutions, plan_convolutions
from sbs_deploy.build import integer_summary
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.legalise.fp8 import fp8_from_int8
from sbs_deploy.legalise.half import half_precision
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from tests.fakes import FakeMemory, FakeTensorRT
from tests.sbs_deploy.graphs import CONVOLUTIONS, float_model, qdq_model

needs_rtx = pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")


def build_rtx(tmp_path: Path, model: onnx.ModelProto, precision: str = "int8", **changes: Any) -> BuiltEngine:
    source = tmp_path / "model.trt.onnx"
    onnx.save(half_precision(model) if precision == "fp16" else model, source)
    settings: dict[str, Any] = {"profile": BatchProfile(opt=2, max=8), **changes}
    destination = tmp_path / "engines" / f"model.{precision}.tensorrt-rtx.engine"
    request = Request(backend=TENSORRT_RTX, precision=precision, **settings)
    return build_engine(source, destination, request, made_from={"plan.json": "f" * 64})


@needs_rtx
def test_rtx_engine_and_its_manifest(tmp_path: Path) -> None:
    built = build_rtx(tmp_path, qdq_model("trt"))
    assert built.path.stat().st_size > 10_000
    manifest = rundir.require_whole(built.path, "sbs-deploy build")
    assert manifest.made_from["model.trt.onnx"] == rundir.sha256_of(tmp_path / "model.trt.onnx")
    assert manifest.made_from["plan.json"] == "f" * 64
    assert manifest.details["compute_capabilities"] == ["SM80", "SM86", "SM89", "SM120"]
    assert manifest.details["shapes"] == {"input": ["batch", 3, 8, 8], "logits": ["batch", 10]}
    assert manifest.details["profile"] == {"opt": 2, "max": 8}
    assert "tensorrt_rtx" in manifest.versions
    assert build_rtx(tmp_path, qdq_model("trt")).skipped
    assert not build_rtx(tmp_path, qdq_model("trt"), profile=BatchProfile(opt=1, max=8)).skipped


@needs_rtx
def test_every_quantized_convolution_is_int8_in_the_plan(tmp_path: Path) -> None:
    plan = build_rtx(tmp_path, qdq_model("trt")).path.read_bytes()
    found = low_precision_convolutions(plan, CONVOLUTIONS)
    if found is None:
        pytest.skip("the text of the plan is not recognised: its format changed")
    assert found == CONVOLUTIONS


def batches_in_plan(plan: bytes) -> list[int]:
    """Batch sizes of the optimization profile: shapes in the plan's binary part, in whole numbers of 64 bits."""
    image = re.finditer(re.escape(struct.pack("<3q", 3, 8, 8)), plan)
    return [batch for at in image if (batch := struct.unpack("<q", plan[at.start() - 8 : at.start()])[0]) > 0]


@needs_rtx
@pytest.mark.parametrize("profile", [BatchProfile(), BatchProfile(opt=5, max=37)])
def test_the_plan_holds_the_batch_profile(tmp_path: Path, profile: BatchProfile) -> None:
    """What a GPU would answer to get_tensor_profile_shape, read without one."""
    found = batches_in_plan(build_rtx(tmp_path, qdq_model("trt"), profile=profile).path.read_bytes())
    if not found:
        pytest.skip("the shapes in the plan are not recognised: its format changed")
    assert found == [1, profile.opt, profile.max]


REFUSED = {
    "batch size written in": (
        "g (float[batch, 3, 8, 8] input) => (float[four, 192] logits) <int64[2] s = {4, 192}>"
        "{ logits = Reshape(input, s) }",
        "cannot build model.trt.onnx: .*kOPT values for profile 0 violate shape constraints.*change volume 384 to 768",
    ),
    "integer bias": (
        "g (float[batch, 3, 8, 8] input) => (float[batch, 1, 8, 8] logits)"
        "<float s = {0.1}, float t = {0.01}, int8 z = {0}, int8[1, 3, 1, 1] w = {1, 2, 3}, int32[1] b = {5}>"
        "{ q = QuantizeLinear(input, s, z) x = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s)"
        "  c = DequantizeLinear(b, t) logits = Conv(x, v, c) }",
        "cannot import model.trt.onnx: DequantizeLinear: .*input has type Int32 but must have type FP8",
    ),
    "operator unknown": (
        "g (float[batch, 3, 8, 8] input) => (float[batch, 3] logits) { logits = Det(input) }",
        "cannot import model.trt.onnx: Det: .",
    ),
}


@needs_rtx
@pytest.mark.parametrize(("graph", "words"), REFUSED.values(), ids=REFUSED)
def test_a_graph_that_tensorrt_refuses(tmp_path: Path, graph: str, words: str) -> None:
    """By the parser or by the builder: its own words, on one line, and our remedy."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {graph}')
    with pytest.raises(SbsError) as refusal:
        build_rtx(tmp_path, model)
    said = str(refusal.value)
    assert re.search(f"^tensorrt_rtx .*{words}", said), said
    assert f"sbs-deploy lint {tmp_path / 'model.trt.onnx'}" in said and "--backend onnxruntime" in said
    assert "catchCudaError" not in said and "\n" not in said
    assert not list(tmp_path.rglob("*.engine*"))


@needs_rtx
@pytest.mark.parametrize(("precision", "operand"), [("fp16", "half"), ("fp32", "float")])
def test_float_controls_compute_in_their_type(tmp_path: Path, precision: str, operand: str) -> None:
    kernels = plan_convolutions(build_rtx(tmp_path, float_model(), precision).path.read_bytes())
    if kernels is None:
        pytest.skip("the text of the plan is not recognised: its format changed")
    assert {(kernel.input_type, kernel.weight_type) for kernel in kernels} == {(operand, operand)}


@needs_rtx
def test_the_other_dialect_is_refused_in_the_parsers_words(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="Non-zero zero point is not supported"):
        build_rtx(tmp_path, qdq_model("ort"))
    assert not list(tmp_path.rglob("*.engine*"))


@needs_rtx
def test_an_unknown_compute_capability(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="does not know SM999"):
        build_rtx(tmp_path, qdq_model("trt"), compute_capabilities=("SM999",))


def test_sm75_is_not_built_for() -> None:
    """It would turn INT8 convolutions into float, or refuse float products."""
    assert "SM75" not in RTX_COMPUTE_CAPABILITIES


def test_plan_text_of_another_format() -> None:
    assert plan_convolutions(b"\0\1something else entirely") is None
    lost_tensor = b'corrltn={ name="c" output={"o" } input={"i" "w" } layers="[ONNX Layer: c]" }\n'
    assert plan_convolutions(lost_tensor) is None


def test_plan_text_by_hand() -> None:
    tensors = b"".join(
        b'  tensor={ dims={ 1 16 } name="' + name + b'" strides={ 16 1 } type=' + kind + b" }\n"
        for name, kind in ((b"i", b"int8"), (b"w", b"int8"), (b"o", b"float"), (b"w2", b"half"))
    )
    kernel = b'  corrltn={ name="c" output={"o" } input={"i" "w" "s" } x=1 layers="[ONNX Layer: c][ONNX Layer: q]" }\n'
    second = b'  corrltn={ name="d" output={"o" } input={"o" "w2" } x=1 layers="[ONNX Layer: d]" }\n'
    plan = b"\0header {\n" + tensors + kernel + second
    kernels = plan_convolutions(plan)
    assert kernels is not None
    assert [(k.name, k.layers, k.input_type, k.weight_type) for k in kernels] == [
        ("c", ("c", "q"), "int8", "int8"),
        ("d", ("d",), "float", "half"),
    ]
    assert low_precision_convolutions(plan, ["c", "d", "absent"]) == ["c"]


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None])
def test_corrupt_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.trt.onnx"
    path.write_bytes(qdq_model("trt").SerializeToString()[:700] if content is None else content)
    with pytest.raises(SbsError, match="is damaged.*sbs-deploy export"):
        load_onnx(path)


def test_batch_profile() -> None:
    with pytest.raises(SbsError, match="--batch-opt"):
        BatchProfile(opt=9, max=8)


def asked(**what: Any) -> Request:
    return Request(backend=TENSORRT, precision="int8", **what)


@pytest.mark.parametrize(("version", "flags"), [("10.13", 2), ("11.4", 1)])
def test_strong_typing_on_both_versions(version: str, flags: int) -> None:
    """The flag's number differs between versions; the network must be strongly typed on both."""
    trt: Any = FakeTensorRT(version, FakeMemory())
    built = backend.engine_from_onnx(trt, float_model(), "m.onnx", asked(profile=BatchProfile(opt=4, max=16)))
    assert built.plan == b"a fake plan"
    assert trt.created_with == [flags]
    assert trt.profiles == [("input", (1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 8, 8))]
    assert built.shapes == {"input": ["batch", 3, 8, 8], "logits": ["batch", 10]}


@pytest.mark.parametrize("version", ["10.13", "11.4"])
@pytest.mark.parametrize("step", ["builder", "create_network", "parse", "build"])
def test_a_refusal_quotes_the_logger(version: str, step: str) -> None:
    trt: Any = FakeTensorRT(version, FakeMemory(), refuse=step, words="no kernel for this")
    with pytest.raises(SbsError, match="no kernel for this"):
        backend.engine_from_onnx(trt, float_model(), "m.onnx", asked())


def test_one_logger_a_module_and_old_records_are_not_quoted() -> None:
    trt: Any = FakeTensorRT("10.13", FakeMemory())
    logger = trt_log.recording_logger(trt)
    assert trt_log.recording_logger(trt) is logger
    logger.log(trt.Severity.ERROR, "an old failure")
    mark = trt_log.mark(trt)
    logger.log(trt.Severity.INFO, "chatter")
    logger.log(trt.Severity.ERROR, "the new\nfailure")
    assert str(trt_log.refused(trt, mark, "cannot build")) == "tensorrt 10.13 cannot build: the new failure"


@pytest.mark.skipif(import_problem(TENSORRT) is None, reason="tensorrt is installed")
def test_missing_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="--backend tensorrt-rtx"):
        build_engine(
            tmp_path / "m.onnx", tmp_path / "m.engine", Request(backend=TENSORRT, precision="int8"), made_from={}
        )


@needs_rtx
def test_an_fp8_engine_is_built_for_chips_that_have_it(tmp_path: Path) -> None:
    model = qdq_model("trt")
    clip = next(node for node in model.graph.node if node.op_type == "Clip")
    reader = next(node for node in model.graph.node if clip.output[0] in node.input)
    reader.input[0] = clip.input[0]
    model.graph.node.remove(clip)
    built = build_rtx(tmp_path, fp8_from_int8(model), "fp8")
    assert built.details["compute_capabilities"] == ["SM89", "SM120"]
    kernels = plan_convolutions(built.path.read_bytes())
    if kernels is None:
        pytest.skip("the text of the plan is not recognised: its format changed")
    found = {kernel.layers[0]: (kernel.input_type, kernel.weight_type) for kernel in kernels}
    assert all(types == ("fp8_e4m3", "fp8_e4m3") for name, types in found.items() if name.startswith("conv"))


def int8_with_filters(size: int) -> onnx.ModelProto:
    """Two convolutions: `stem` with filters of `size` squared, `body` with 3 x 3."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[batch, 3, 32, 32] input) => (float[batch, 16, h, w] logits) <float s = {0.1}, int8 z = {0}>
        {
          q = QuantizeLinear(input, s, z)
          x = DequantizeLinear(q, s, z)
          v = DequantizeLinear(stem_weight, s, z)
          [stem] y = Conv <strides = [2, 2]> (x, v)
          p = QuantizeLinear(y, s, z)
          d = DequantizeLinear(p, s, z)
          u = DequantizeLinear(body_weight, s, z)
          [body] logits = Conv(d, u)
        }"""
    )
    for name, shape in (("stem_weight", (16, 3, size, size)), ("body_weight", (16, 16, 3, 3))):
        codes = np.random.default_rng(0).integers(-99, 99, shape).astype(np.int8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(codes, name))
    return model


@needs_rtx
@pytest.mark.parametrize(("size", "left"), [(5, []), (7, ["stem"])])
def test_large_filters_are_no_reason_to_refuse_fp8(tmp_path: Path, size: int, left: list[str]) -> None:
    """TensorRT-RTX computes FP8 convolutions of more than 32 elements a filter (ResNet's first) in FP16."""
    built = build_rtx(tmp_path, half_precision(fp8_from_int8(int8_with_filters(size))), "fp8")
    assert built.details["quantized_layers"] == 2
    if built.details["float_layers"] is None:
        pytest.skip("the text of the plan is not recognised: its format changed")
    assert built.details["float_layers"] == left
    assert integer_summary(built.details) == (
        "1 of 2 quantized layers run in FP8; in float: stem" if left else "2 of 2 quantized layers run in FP8"
    )


@needs_rtx
@pytest.mark.parametrize(("precision", "found", "refused"), [("int8", ["body"], "stem"), ("fp8", [], "stem, body")])
def test_an_engine_that_is_not_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, found: list[str], refused: str
) -> None:
    """One float layer in INT8, nothing but float in FP8."""
    model = int8_with_filters(3)
    monkeypatch.setattr(trt_runtime, "low_precision_convolutions", lambda plan, names: found)
    with pytest.raises(SbsError, match=f"put {refused} in float: the engine would not be {precision}"):
        build_rtx(tmp_path, fp8_from_int8(model) if precision == "fp8" else model, precision)
    assert not list(tmp_path.rglob("*.engine*"))


@pytest.mark.parametrize("version", ["10.13", "11.4"])
def test_settings_reach_the_builder(version: str) -> None:
    trt: Any = FakeTensorRT(version, FakeMemory())
    settings = BuilderSettings(
        optimization_level=5, workspace_mib=256, hardware_compatibility="ampere-plus", refit=True
    )
    built = backend.engine_from_onnx(trt, float_model(), "m.onnx", asked(settings=settings))
    (config,) = trt.configs
    assert config.builder_optimization_level == 5 and config.limits == {0: 256 * 2**20}
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert built.flags == ["REFIT"] and config.flags == [trt.BuilderFlag.REFIT]


def test_a_setting_that_a_version_lacks_is_named() -> None:
    trt: Any = FakeTensorRT("10.13", FakeMemory())
    settings = BuilderSettings(version_compatible=True)
    with pytest.raises(SbsError, match="--version-compatible: tensorrt 10.13 does not have it"):
        backend.engine_from_onnx(trt, float_model(), "m.onnx", asked(settings=settings))
