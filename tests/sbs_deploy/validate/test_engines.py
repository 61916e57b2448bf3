"""Engines are judged by their own graph, and the layer that was broken on purpose is named.

The device is a stand-in: an "engine" holds the graph it was built from, and ONNX Runtime runs it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.spec import TENSORRT_RTX, choose_backend, import_problem
from sbs_deploy.backends.tensorrt import runtime as tensorrt
from sbs_deploy.backends.tensorrt.build import SerializedEngine
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.cli import main
from sbs_deploy.graph.arrays import input_specs, output_specs
from sbs_deploy.graph.run import run_graph
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.legalise.single import single_precision, with_rounding
from sbs_deploy.validate.divergence import with_layer_outputs
from sbs_deploy.validate.engines import engine_verdicts, in_words
from sbs_deploy.validate.run import validate_run, with_engines
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import CheckedEngine

pytestmark = pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")

BROKEN = "layer2.1.conv1"
BATCH_MAX = 128
Change = Callable[[onnx.ModelProto], None]


class OnnxEngine:
    """An engine whose file is an ONNX graph."""

    device = "Fake GPU"

    def __init__(self, path: Path, *, backend: Any, precision: str, **settings: Any) -> None:
        self.name, self.precision = path.name, precision
        self.model = onnx.load_model_from_string(path.read_bytes())
        self.inputs, self.outputs = input_specs(self.model), output_specs(self.model)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        for array in inputs.values():
            if len(array) > BATCH_MAX:
                raise SbsError(f"{self.name} does not take the shape {array.shape}")
        return run_graph(self.model, [output.name for output in self.model.graph.output], inputs, "none")

    def __enter__(self) -> "OnnxEngine":
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """A GPU whose builder changes graphs as the list says."""
    changes: list[Change] = []

    def engine_from_onnx(trt: Any, graph: onnx.ModelProto, *arguments: Any, **settings: Any) -> SerializedEngine:
        model = onnx.load_model_from_string(graph.SerializeToString())
        for one in changes:
            one(model)
        return SerializedEngine(plan=model.SerializeToString(), shapes={}, flags=[])

    monkeypatch.setattr(tensorrt, "engine_from_onnx", engine_from_onnx)
    monkeypatch.setattr(tensorrt, "TensorRTEngine", OnnxEngine)
    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: "Fake GPU")
    return changes


def build_engine(run: RunDir, precision: str = "int8", **options: Any) -> Path:
    choice = choose_backend("tensorrt-rtx")
    chosen = BuildOptions(precision=precision, choice=choice, batches=BatchProfile(max=BATCH_MAX), **options)  # type: ignore[arg-type]
    return engine_stage(run, chosen).path


def scaled(layer: str, factor: float) -> Change:
    """A layer whose weights are larger than they should be."""

    def apply(model: onnx.ModelProto) -> None:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        known = [f"{layer}.{kind}_fp16" for kind in ("weight_scale", "weight")]
        tensor = next(tensors[name] for name in known if name in tensors)
        tensor.CopyFrom(
            numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype("float16"), tensor.name)
        )

    return apply


def only(run: RunDir) -> CheckedEngine:
    (verdict,) = engine_verdicts(run)
    return verdict


@pytest.mark.parametrize(
    ("precision", "options", "reference"),
    [
        ("int8", {}, "model.int8.tensorrt-rtx.onnx"),
        ("int8", {"activations": "promote"}, "model.int8.tensorrt-rtx.onnx"),
        ("fp8", {}, "model.fp8.tensorrt-rtx.onnx"),
        ("fp16", {}, "model.fp16.tensorrt-rtx.onnx"),
        ("fp32", {}, "model.slim.onnx"),
    ],
)
def test_a_sound_engine_passes(
    run_copy: RunDir, change: list[Change], precision: str, options: dict[str, Any], reference: str
) -> None:
    path = build_engine(run_copy, precision, **options)
    verdict = only(run_copy)
    assert (verdict.engine, verdict.passed, verdict.note) == (path.name, True, None)
    assert (verdict.device, verdict.reference, verdict.first_divergence) == ("Fake GPU", reference, None)
    assert verdict.against_reference is not None and verdict.against_reference["output"].classes.disagreeing <= 1
    assert (verdict.against_pytorch is None) == (precision in ("fp16", "fp32"))
    assert "passed on Fake GPU" in in_words(verdict)


@pytest.mark.parametrize(
    ("precision", "layer"), [("int8", "conv1"), ("int8", BROKEN), ("int8", "fc"), ("fp16", BROKEN)]
)
def test_the_broken_layer_is_named(run_copy: RunDir, change: list[Change], precision: str, layer: str) -> None:
    change.append(scaled(layer, -1.0))
    build_engine(run_copy, precision)
    verdict = only(run_copy)
    assert verdict.passed is False and verdict.first_divergence == layer
    assert f"first diverging layer {layer}" in in_words(verdict)


def test_rounding_is_not_held_against_an_engine(run_copy: RunDir, change: list[Change]) -> None:
    # What no float16 kernel can avoid: every result is rounded.
    change.append(lambda model: model.CopyFrom(with_rounding(single_precision(model))))
    build_engine(run_copy)
    verdict = only(run_copy)
    assert verdict.passed and verdict.against_reference is not None
    assert (
        verdict.against_reference["output"].max_abs_diff > 0
        and verdict.against_reference["output"].classes.disagreeing <= 1
    )


def test_what_only_the_file_has_wrong_is_said(run_copy: RunDir, change: list[Change]) -> None:
    change.append(scaled(BROKEN, -1.0))
    build_engine(run_copy)
    change.clear()
    verdict = only(run_copy)
    assert verdict.passed is False and verdict.first_divergence is None
    assert verdict.note is not None and "build the engine again" in verdict.note


def test_layers_that_cannot_be_built_are_a_note(
    run_copy: RunDir, change: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    change.append(scaled(BROKEN, -1.0))
    build_engine(run_copy)

    def refuse(*arguments: Any) -> SerializedEngine:
        raise SbsError("tensorrt_rtx cannot build it")

    monkeypatch.setattr(tensorrt, "engine_from_onnx", refuse)
    assert only(run_copy).note == "layers were not compared: tensorrt_rtx cannot build it"


def test_an_engine_that_does_not_run_fails(
    run_copy: RunDir, change: list[Change], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: OnnxEngine, inputs: np.ndarray) -> np.ndarray:
        raise SbsError("tensorrt_rtx failed to run it: an illegal memory access")

    monkeypatch.setattr(OnnxEngine, "run", fail)
    build_engine(run_copy)
    verdict = only(run_copy)
    assert verdict.passed is False and "illegal memory access" in in_words(verdict)


@pytest.mark.parametrize("damage", ["engine", "legal", "no manifest", "profile", "batch"])
def test_a_damaged_engine_fails_and_one_without_its_graph_is_not_judged(
    run_copy: RunDir, change: list[Change], damage: str
) -> None:
    path = build_engine(run_copy)
    legal = run_copy.deploy / "legal" / f"{path.stem}.onnx"
    if damage == "engine":
        path.write_bytes(b"another")
    elif damage == "legal":
        legal.unlink()
    elif damage in ("profile", "batch"):  # one bit of the manifest, which is JSON all the same
        manifest = rundir.manifest_path(path)
        old, new = {"profile": ('"profile"', '"profhle"'), "batch": ('"max": 128', '"max": 0')}[damage]
        assert old in manifest.read_text()
        manifest.write_text(manifest.read_text().replace(old, new))
    else:
        rundir.manifest_path(path).unlink()
    verdict = only(run_copy)
    assert verdict.passed is (None if damage == "legal" else False)
    assert in_words(verdict).startswith("not checked: " if damage == "legal" else "failed: ")
    assert "run `sbs-deploy build" in str(verdict.note) or "with `sbs-deploy build" in str(verdict.note)
    if damage == "legal":
        again = f"sbs-deploy build {run_copy.root} --engine int8 --backend tensorrt-rtx --batch-max {BATCH_MAX}"
        assert f"run `{again}` again" in str(verdict.note)


def test_where_no_gpu_is_it_is_said_and_nothing_fails(
    run_copy: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: None)
    path = build_engine(run_copy)  # a real one: it is built ahead of time
    assert main(["validate", str(run_copy.root), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{path.name}: not checked: no NVIDIA GPU" in lines
    document = json.loads(lines[-1])
    assert document["passed"] and {"max_abs_diff", "top1_agreement", "first_divergence"} <= set(document)
    (entry,) = document["engines"]
    assert (entry["engine"], entry["passed"], entry["note"]) == (path.name, None, "no NVIDIA GPU")
    assert rundir.read_json(run_copy.validation) == document


def test_the_command_fails_with_one_line(
    run_copy: RunDir, change: list[Change], capsys: pytest.CaptureFixture[str]
) -> None:
    change.append(scaled(BROKEN, -1.0))
    path = build_engine(run_copy)
    assert main(["validate", str(run_copy.root)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert path.name in line and f"first diverging layer {BROKEN}" in line
    document = rundir.read_json(run_copy.validation)
    assert not document["passed"] and document["engines"][0]["passed"] is False
    assert document["first_divergence"] == document["engines"][0]["first_divergence"] == BROKEN


def test_the_real_builder_takes_the_layers_as_outputs(exported: RunDir) -> None:
    import tensorrt_rtx

    model = half_precision(onnx.load(exported.model_trt))
    watched, outputs = with_layer_outputs(model)
    request = Request(
        backend=TENSORRT_RTX, precision="int8", profile=BatchProfile(max=16), compute_capabilities=("SM89",)
    )
    built = tensorrt.engine_from_onnx(tensorrt_rtx, watched, "layers", request)
    assert set(built.shapes) == {"x_NCHW", "output", *outputs.values()}


def test_a_run_without_engines_is_left_alone(run_copy: RunDir) -> None:
    report = validate_run(run_copy)
    assert with_engines(run_copy, report) is report
    assert report.engines == ()
