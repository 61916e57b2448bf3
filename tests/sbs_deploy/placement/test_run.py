"""Placement of a small run: for real on both CPU engines, and on a stand-in for a GPU."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sbs_deploy.backends.request import BatchProfile
from sbs_deploy.backends.runtime import open_engine
from sbs_deploy.backends.spec import OPENVINO, TENSORRT_RTX, choose_backend, import_problem
from sbs_deploy.backends.tensorrt.device_cuda_python import CudaPythonDevice
from sbs_deploy.build import BuildOptions, Placed, engine_stage
from sbs_deploy.cli import main
from sbs_deploy.export.codes import load_codes
from sbs_deploy.graph.run import outputs_of
from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.placement import bench
from sbs_deploy.placement.run import PlacementSettings, check_placement, place_run
from sbs_deploy.placement.words import ship_advice
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import AgainstControl, Placement
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from tests.fake_cuda import FakeMemory, fake_cuda_runtime
from tests.fakes import FakeTensorRT
from tests.sbs_deploy.golden import golden_of, only
from tests.sbs_deploy.graphs import CONVOLUTIONS
from tests.sbs_deploy.whole_run import make_whole_run

SHORT = PlacementSettings(mode="measured", minutes=0.01)
needs_openvino = pytest.mark.skipif(import_problem(OPENVINO) is not None, reason="needs openvino")
needs_rtx = pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
CPU = ["onnxruntime", pytest.param("openvino", marks=needs_openvino)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(sys.modules["sbs_deploy.build"], "export_stage", lambda run, progress: None)
    monkeypatch.setattr(bench, "ROUNDS", (5, 5))
    monkeypatch.setattr(bench, "BLOCK_MS", 0.1)
    monkeypatch.setattr(bench, "WARM_UP_MS", (0.1, 1.0))
    return make_whole_run(tmp_path / "run")


def options(backend: str, **changes: Any) -> BuildOptions:
    return BuildOptions(precision="int8", choice=choose_backend(backend), **changes)


def place(run: RunDir, backend: str = "onnxruntime", settings: PlacementSettings = SHORT) -> tuple[Placed, list[str]]:
    said: list[str] = []
    return place_run(run, options(backend), said.append, settings), said


@pytest.mark.parametrize("backend", CPU)
def test_build_measures_and_says_what_it_chose(run: RunDir, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    assert main(["build", str(run.root), "--backend", backend, "--placement-minutes", "0.01", "--json"]) == 0
    printed = capsys.readouterr()
    built = json.loads(printed.out.splitlines()[-1])
    placement = Placement.model_validate(built["placement"])
    assert (placement.mode, placement.threads, placement.batch, placement.clock) == ("measured", 1, 1, "process")
    assert [one.control for one in placement.controls] == ["fp32 dense", "fp32 slim"]
    assert all(one.interval[0] <= one.speed <= one.interval[1] for one in placement.controls)
    slowest = min(one.speed for one in placement.controls)
    assert built["ship"] == placement.ship and (placement.ship is not None) == (slowest < 0.98)
    assert placement.quantized_layers == 3 and {one.layer for one in placement.float_layers} <= set(CONVOLUTIONS)
    assert all(one.int8_ms is not None and one.float_ms is not None for one in placement.float_layers)
    assert any(one.speed == 1 and not one.form for one in placement.timed), "the plan's graph"
    assert "take turns" in printed.err and "the speed of fp32 slim" in printed.err
    assert main(["build", str(run.root), "--backend", backend, "--placement-minutes", "0.01", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["skipped"] and "take turns" not in printed.err
    assert main(["bench", str(run.root), "--rounds", "1"]) == 0


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("floats", [(), ("conv1",), ("conv2",), ("conv1", "conv3"), tuple(CONVOLUTIONS)])
def test_an_engine_of_any_placement_answers_like_its_graph(run: RunDir, backend: str, floats: tuple[str, ...]) -> None:
    legalisation = Legalisation(precision="int8", float_layers=floats)
    placed = Placed(legalisation=legalisation, placement=Placement(mode="measured"))
    built = engine_stage(run, options(backend), placed)
    inputs = golden_of(run).inputs
    source = run.model_ort if not floats else run.deploy / "legal" / f"model.int8.{backend}.onnx"
    expected = outputs_of(onnx.load(source), inputs)
    with open_engine(built.path, choose_backend(backend).backend, "int8", 1, built=True) as engine:
        np.testing.assert_allclose(only(engine.run(inputs)), only(expected), rtol=1e-2, atol=0.02)
    assert built.details["legal"].get("float_layers", []) == list(floats)
    assert engine_stage(run, options(backend), placed).skipped
    assert not engine_stage(run, options(backend), replace(placed, placement=Placement(mode="plan"))).skipped


@pytest.mark.parametrize("backend", CPU)
def test_a_residual_network_with_every_third_layer_in_float(run_copy: RunDir, backend: str) -> None:
    """ResNet-20 on digits with mixed bits: engine, graph and plan give the same classes."""
    names = tuple(load_codes(run_copy.codes).layers)[::3]
    placed = Placed(
        legalisation=Legalisation(precision="int8", float_layers=names), placement=Placement(mode="measured")
    )
    built = engine_stage(run_copy, options(backend), placed)
    golden = golden_of(run_copy)
    found = built.details["legal"]["golden"]
    plan_top1 = 100 * float(np.mean(only(golden.outputs).argmax(1) == golden.labels))
    assert abs(found["top1"] - plan_top1) <= 5
    legal = onnx.load(run_copy.deploy / "legal" / f"model.int8.{backend}.onnx")
    expected = only(outputs_of(legal, golden.inputs))
    with open_engine(built.path, choose_backend(backend).backend, "int8", 1, built=True) as engine:
        answers = only(engine.run(golden.inputs))
    assert np.mean(answers.argmax(1) == expected.argmax(1)) >= 0.97


def test_an_interrupted_measurement_goes_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bench.measure, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(bench, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place(run)
    placed, _ = place(run)
    assert len(calls) > 2
    races = len(calls)
    first_labels = [sorted(call[0]) for call in calls]
    assert first_labels.count(first_labels[0]) == 1, "the first race is not run again"
    again, _ = place(run)
    assert len(calls) == races and again == placed


def test_another_run_is_measured_anew(run: RunDir) -> None:
    place(run)
    place(run, settings=replace(SHORT, threads=2))
    assert len(list((run.deploy / "placement").glob("int8.onnxruntime.*.json"))) == 2


def test_a_damaged_record_is_named_with_its_remedy(run: RunDir) -> None:
    place(run)
    (path,) = (run.deploy / "placement").glob("*.json")
    path.write_text('{"races": {"a": {"rounds_ms": {"b": [-1.0]}}}}')
    with pytest.raises(SbsError, match=f"{path.name}.*delete"):
        place(run)


def test_the_plan_as_asked_for(run: RunDir) -> None:
    placed, said = place(run, settings=PlacementSettings(mode="plan"))
    assert placed == Placed(
        legalisation=Legalisation(precision="int8"), placement=Placement(mode="plan", why="asked for")
    )
    assert said == ["placement: every layer as planned (asked for)"]


def _renamed(rounds_ms: dict[str, list[float]]) -> dict[str, list[float]]:
    return {f"other {name}": rounds for name, rounds in rounds_ms.items()}


def _uneven(rounds_ms: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: rounds[: 1 + at % 2] for at, (name, rounds) in enumerate(rounds_ms.items())}


@pytest.mark.parametrize("change", [_renamed, _uneven])
def test_a_race_of_other_graphs_or_uneven_rounds_is_named_with_its_remedy(run: RunDir, change: Any) -> None:
    place(run)
    (path,) = (run.deploy / "placement").glob("*.json")
    trials = json.loads(path.read_text())
    for race in trials["races"].values():
        race["rounds_ms"] = change(race["rounds_ms"])
    path.write_text(json.dumps(trials))
    with pytest.raises(SbsError, match=f"{path.name}.*delete"):
        place(run)


@needs_rtx
def test_where_no_gpu_is_the_plan_stays_and_the_reason_is_said(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> Any:
        raise SbsError("no NVIDIA GPU here")

    monkeypatch.setattr("sbs_deploy.backends.tensorrt.runtime.open_device", no_device)
    placed, said = place(run, "tensorrt-rtx", PlacementSettings())
    assert placed.placement.mode == "plan" and "no NVIDIA GPU here" in placed.placement.why
    assert placed.legalisation.depthwise == "fp16" and "no NVIDIA GPU here" in said[0]
    with pytest.raises(SbsError, match="no NVIDIA GPU here"):
        check_placement(options("tensorrt-rtx"), SHORT, batch_given=False)


def test_tensorrt_on_a_stand_in_for_a_gpu(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code: engines are built, timed on the device's clock and profiled; equal times change nothing."""
    trt = FakeTensorRT("11.4", FakeMemory())
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr("sbs_deploy.machine.clocks.gpu_name", lambda: "Fake GPU")
    for module in ("runtime", "engine"):
        name = f"sbs_deploy.backends.tensorrt.{module}.open_device"
        monkeypatch.setattr(name, lambda: CudaPythonDevice(fake_cuda_runtime(trt.memory)))
    said: list[str] = []
    chosen = options("tensorrt", batches=BatchProfile(opt=2, max=4))
    placed = place_run(run, chosen, said.append, SHORT)
    assert placed.legalisation == chosen.legalisation(load_plan(run.plan)) and placed.placement.float_layers == []
    assert [(one.control, one.speed) for one in placed.placement.controls] == [
        ("fp32 dense", 1.0),
        ("fp16 slim", 1.0),
    ]
    assert (placed.placement.clock, placed.placement.batch, placed.placement.ship) == ("device", 2, None)
    assert {low for name, low, _, _ in trt.profiles if name == "input"} == {(1, 3, 8, 8)}
    assert {(opt[0], high[0]) for name, _, opt, high in trt.profiles} == {(2, 4)}
    assert trt.memory.live == (0, 0, 0, 0)


def test_a_faster_control_is_named() -> None:
    controls = [
        AgainstControl(control="fp32 dense", ms=2.0, speed=1.2, interval=[1.1, 1.3]),
        AgainstControl(control="fp32 slim", ms=1.0, speed=0.9, interval=[0.88, 0.92]),
    ]
    advice = ship_advice(Placement(mode="measured", ms=1.1, controls=controls, ship="fp32 slim"))
    assert advice is not None and "fp32 slim" in advice and "0.9" in advice
    assert ship_advice(Placement(mode="measured", ms=1.1, controls=controls[:1])) is None
