"""Float controls: which ones a backend gets, from which files, and that TensorRT's are built like the plan's engine."""

import contextlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from sbs_deploy.backends.request import BatchProfile
from sbs_deploy.backends.spec import (
    ONNXRUNTIME,
    OPENVINO_NPU,
    TENSORRT,
    TENSORRT_RTX,
    Backend,
    choose_backend,
    import_problem,
)
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.engines.artifacts import find_artifacts
from sbs_deploy.engines.controls import Control, control_engine, wanted_controls, write_graph
from sbs_deploy.engines.rebuild import source_of
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.whole_run import make_whole_run

ALL = ("fp32", "fp16", "slim")
pytest.importorskip("onnxruntime")
needs_rtx = pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_whole_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("backend", "labels"),
    [
        (TENSORRT, ["fp32 dense", "fp16 dense", "fp16 slim"]),
        (ONNXRUNTIME, ["fp32 dense", "fp32 slim"]),
        (OPENVINO_NPU, ["fp16 dense", "fp16 slim"]),
    ],
)
def test_controls_of_a_backend(backend: Backend, labels: list[str]) -> None:
    assert [control.label for control in wanted_controls(backend, ALL)] == labels
    assert len(wanted_controls(backend, ("fp32",))) == (backend is not OPENVINO_NPU)


def test_fp16_graphs_are_made_once_of_the_float_ones(run: RunDir) -> None:
    control = Control(network="dense", precision="fp16", backend=TENSORRT)
    path = write_graph(control, run)
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer if ".weight" in tensor.name}
    assert types == {TensorProto.FLOAT16}
    before = path.stat().st_mtime_ns
    assert write_graph(control, run).stat().st_mtime_ns == before
    assert write_graph(Control(network="slim", precision="fp32", backend=TENSORRT), run) == run.model_slim


@needs_rtx
def test_tensorrt_controls_are_built_like_the_plans_engine(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sbs_deploy.backends.tensorrt.runtime.open_device", contextlib.nullcontext)
    control = Control(network="dense", precision="fp16", backend=TENSORRT_RTX)
    details: dict[str, Any] = {"profile": {"opt": 2, "max": 4}, "compute_capabilities": ["SM89"]}
    with control_engine(control, run, details, 0) as first:
        manifest = rundir.read_manifest(first)
        assert first == run.deploy / "controls" / "dense.fp16.tensorrt-rtx.engine"
    assert manifest.details["profile"] == {"opt": 2, "max": 4}
    assert (manifest.details["precision"], manifest.details["compute_capabilities"]) == ("fp16", ["SM89"])
    with control_engine(control, run, details, 1) as second:
        assert second != first and second.is_file()
    assert not second.exists() and first.is_file(), "only build number 0 is kept"
    with pytest.raises(SbsError, match="manifest of the engine for tensorrt-rtx is damaged"):
        control_engine(control, run, {"profile": {"best": 1}}, 1).__enter__()


def test_nothing_is_built_that_cannot_run_here(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> Any:
        raise SbsError("no NVIDIA GPU here")

    monkeypatch.setattr("sbs_deploy.backends.tensorrt.runtime.open_device", no_device)
    control = Control(network="dense", precision="fp32", backend=TENSORRT_RTX)
    with pytest.raises(SbsError, match="fp32 dense was not built: no NVIDIA GPU here"):
        control_engine(control, run, {}, 0).__enter__()
    assert not list(run.deploy.glob("controls/*"))


@needs_rtx
def test_an_engine_brings_its_backends_controls(run: RunDir) -> None:
    options = BuildOptions(precision="int8", choice=choose_backend("tensorrt-rtx"), batches=BatchProfile(max=8))
    engine_stage(run, options)
    plan = load_plan(run.plan)
    found = [(one.label, one.backend) for one in find_artifacts(run, plan, against=ALL, threads=1)]
    assert found == [
        *[(label, "onnxruntime") for label in ("fp32 dense", "fp32 slim")],
        *[(label, "tensorrt-rtx") for label in ("fp32 dense", "fp16 dense", "fp16 slim")],
        *[("int8", "onnxruntime"), ("int8", "tensorrt-rtx")],
    ]


@needs_rtx
def test_controls_take_the_settings_of_the_int8_engine(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its own, not those of the first engine by name: FP8's is for fewer chips.
    monkeypatch.setattr("sbs_deploy.backends.tensorrt.runtime.open_device", contextlib.nullcontext)
    for precision, largest in (("fp16", 2), ("fp8", 4), ("int8", 8)):
        options = BuildOptions(
            precision=precision,  # type: ignore[arg-type]
            choice=choose_backend("tensorrt-rtx"),
            batches=BatchProfile(max=largest),
        )
        engine_stage(run, options)
    taken: list[dict[str, Any]] = []

    def take(control: Control, run: RunDir, details: dict[str, Any], build: int) -> Any:
        taken.append(details)
        raise SbsError("seen")

    monkeypatch.setattr("sbs_deploy.engines.artifacts.control_engine", take)
    for artifact in find_artifacts(run, load_plan(run.plan), against=("fp32",), threads=1):
        if artifact.backend == "tensorrt-rtx" and artifact.label == "fp32 dense":
            with contextlib.ExitStack() as stack, pytest.raises(SbsError, match="seen"):
                artifact.open(0, stack)
    (details,) = taken
    assert (details["precision"], details["profile"]["max"]) == ("int8", 8)
    assert "SM80" in details["compute_capabilities"]


@needs_rtx
def test_an_engine_knows_the_graph_it_was_built_from(run: RunDir) -> None:
    options = BuildOptions(precision="int8", choice=choose_backend("tensorrt-rtx"), batches=BatchProfile(max=8))
    engine = engine_stage(run, options).path
    manifest = rundir.read_manifest(engine)
    legal = source_of(run, engine, manifest, "sbs-deploy build")
    assert legal == run.deploy / "legal" / "model.int8.tensorrt-rtx.onnx"
    legal.write_bytes(legal.read_bytes() + b"x")
    with pytest.raises(SbsError, match="built from another model.int8.tensorrt-rtx.onnx; run `sbs-deploy build` again"):
        source_of(run, engine, manifest, "sbs-deploy build")
    legal.unlink()
    with pytest.raises(SbsError, match="built from model.int8.tensorrt-rtx.onnx, which is gone"):
        source_of(run, engine, manifest, "sbs-deploy build")
