from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine
from sbs_deploy.backends.request import BatchProfile
from sbs_deploy.backends.spec import TENSORRT_RTX, choose_backend, import_problem
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.engines import artifacts
from sbs_deploy.engines.artifacts import open_engine
from sbs_deploy.machine import clocks
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.run import BenchSettings, bench_inputs, bench_run, verdicts
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.results import TimedRow, read_bench, row_json
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import failed_row, timed_row

pytest.importorskip("onnxruntime")
QUICK = Protocol(warmup_ms=0.0, warmup_iterations=2, rounds=4, block_ms=0.1, block_iterations=(3, 3))
CONTRACT = ("artifact", "backend", "device", "precision", "batch", "latency_p50_ms", "p90", "p99", "cov")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run")


def bench(run: RunDir, **changes: Any) -> list[Any]:
    return bench_run(run, BenchSettings(protocol=QUICK, **changes), lambda message: None)


def make_engine(run: RunDir, backend: str, precision: Any = "int8") -> Path:
    options = BuildOptions(precision=precision, choice=choose_backend(backend), batches=BatchProfile(max=8))
    return engine_stage(run, options).path


def test_int8_and_its_controls_without_an_engine(run: RunDir) -> None:
    rows = bench(run, batches=(1, 2))
    assert [(row.artifact, row.batch) for row in rows] == [
        (f"deploy/{name}", batch)
        for batch in (1, 2)
        for name in ("model.fp32.onnx", "model.slim.onnx", "model.ort.onnx")
    ]
    for row in rows:
        assert all(getattr(row, key) is not None for key in CONTRACT), row
        assert 0 < row.latency_p50_ms <= row.p90 <= row.p99
        assert row.sha256 == rundir.sha256_of(run.root / row.artifact)
        assert (row.threads, row.iterations) == (1, 12)
    assert rows[0].speedup_vs_fp32 == 1
    low, high = rows[2].speedup_interval
    assert low <= (rows[2].speedup_vs_fp32 or low) <= high  # six rounds of microseconds need not agree
    assert rows[2].quickest_ms > 0 and rows[2].cpu_p50_ms > 0
    assert rows[2].images_per_second == pytest.approx(1e3 / rows[2].latency_p50_ms)
    plan = load_plan(run.plan)
    assert rows[0].predicted_bops == plan.cost.bops_fp32
    document = rundir.read_json(run.bench)
    assert document["rows"] == [row_json(row) for row in rows]
    assert all(row.keys() == TimedRow.model_fields.keys() for row in document["rows"])
    found = read_bench(run)
    assert found is not None and found.rows == tuple(rows)
    assert document["plan_sha256"] == rundir.sha256_of(run.plan)
    assert document["machine"]["before"]["cpu"]


def test_the_engine_takes_the_place_of_its_source(run: RunDir) -> None:
    make_engine(run, "onnxruntime")
    rows = bench(run, against=("fp32",))
    assert [row.artifact for row in rows] == [
        "deploy/model.fp32.onnx",
        "deploy/engines/model.int8.onnxruntime.onnx",
    ]


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
def test_an_engine_that_cannot_run_here_is_a_row_with_the_reason(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> Any:
        raise SbsError("no NVIDIA GPU here")

    monkeypatch.setattr("sbs_deploy.backends.tensorrt.engine.open_device", no_device)
    make_engine(run, "tensorrt-rtx")
    row = bench(run)[-1]
    assert row.backend == "tensorrt-rtx"
    assert row.error == "no NVIDIA GPU here"
    assert not isinstance(row, TimedRow) and row.device is None
    written = rundir.read_json(run.bench)["rows"][-1]
    assert written.keys() == TimedRow.model_fields.keys()
    assert {written[key] for key in ("latency_p50_ms", "p90", "p99", "cov", "speedup_vs_fp32", "layers")} == {None}


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
def test_an_fp8_engine_executes_the_plan(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device() -> Any:
        raise SbsError("no NVIDIA GPU here")

    monkeypatch.setattr("sbs_deploy.backends.tensorrt.engine.open_device", no_device)
    make_engine(run, "tensorrt-rtx", "fp8")
    rows = bench(run)
    assert (rows[-1].label, rows[-1].control) == ("fp8", False)
    assert rows[-1].predicted_bops == next(row.predicted_bops for row in rows if row.label == "int8")
    assert any("model.fp8.tensorrt-rtx.engine was not measured" in line for line in verdicts(rows))


def test_a_promoted_engine_says_how_it_answers(run: RunDir) -> None:
    choice = choose_backend("onnxruntime")
    built = engine_stage(run, BuildOptions(precision="int8", choice=choice, activations="promote"))
    assert built.details["legal"]["golden"]["images"] == 4 and built.details["legal"]["promoted_layers"] == 2


def test_a_stale_engine_is_not_measured(run: RunDir) -> None:
    make_engine(run, "onnxruntime")
    run.model_ort.write_bytes(run.model_trt.read_bytes())
    row = bench(run)[-1]
    assert not isinstance(row, TimedRow)
    again = f"sbs-deploy build {run.root} --engine int8 --backend onnxruntime"
    assert f"built from another model.ort.onnx; run `{again}`" in row.error


def test_fp16_on_a_cpu_is_said_to_be_impossible(run: RunDir) -> None:
    rows = bench(run, against=("fp32", "fp16"))
    (row,) = [row for row in rows if row.precision == "fp16"]
    assert "no FP16" in row.error and not isinstance(row, TimedRow)


def test_a_corrupt_control_is_a_row_with_the_reason(run: RunDir) -> None:
    run.model_slim.write_bytes(b"broken")
    rows = bench(run)
    assert "changed after it was made" in rows[1].error and "sbs-deploy export" in rows[1].error
    assert rows[2].speedup_interval is not None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_builds_are_built_measured_and_gone(run: RunDir, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    engine = make_engine(run, backend)
    opened: list[Path] = []
    monkeypatch.setattr(
        artifacts, "open_engine", lambda path, *a, **k: opened.append(path) or open_engine(path, *a, **k)
    )
    before = sorted(run.root.rglob("*"))
    rows = bench(run, builds=3)
    assert {(row.builds, row.iterations, len(row.builds_p50_ms)) for row in rows} == {(3, 36, 3)}
    again = [path for path in opened if path.name == engine.name]
    assert again[0] == engine and len(set(again)) == 3
    assert not any(path.exists() for path in again[1:])
    assert sorted(run.root.rglob("*")) == sorted({*before, run.bench}), "nothing is left in the run"


def test_an_engine_that_cannot_be_built_again_says_why(run: RunDir) -> None:
    choice = choose_backend("onnxruntime")
    options = BuildOptions(precision="int8", choice=choice, activations="promote")
    engine_stage(run, options)
    (run.deploy / "legal" / "model.int8.onnxruntime.onnx").unlink()
    assert bench(run)[-1].error is None, "one build needs no other"
    row = bench(run, builds=2)[-1]
    assert not isinstance(row, TimedRow)
    again = f"sbs-deploy build {run.root} --engine int8 --backend onnxruntime --legalise promote"
    assert f"which is gone; run `{again}` again" in row.error, "without --legalise it would be another engine"


def test_layers_are_in_the_rows(run: RunDir) -> None:
    rows = bench(run)
    for row in rows:
        assert row.layers_error is None
        names = {one.layer for one in row.layers if one.category == "layer"}
        assert names == {layer.name for layer in load_plan(run.plan).layers}, row.artifact
        assert sum(one.share for one in row.layers) == pytest.approx(1)


def test_the_machine_is_recorded_while_everything_is_loaded(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    state, leave = clocks.machine_state, OnnxRuntimeEngine.__exit__
    monkeypatch.setattr(clocks, "machine_state", lambda: events.append("state") or state())
    monkeypatch.setattr(artifacts, "open_engine", lambda *a, **k: events.append("open") or open_engine(*a, **k))
    monkeypatch.setattr(OnnxRuntimeEngine, "__exit__", lambda self, *e: events.append("close") or leave(self, *e))
    bench(run, batches=(1, 2))
    assert events == ["open"] * 3 + ["state"] * 2 + ["close"] * 3, "builds may take minutes, and a GPU cools quickly"


def test_settings_of_a_cpu_engine(run: RunDir) -> None:
    row = bench(run, threads=2)[0]
    assert row.settings.items() >= {"threads": 2, "spinning": True, "io_binding": False}.items()
    assert row.threads == 2


def test_inputs_are_golden_images_repeated(run: RunDir) -> None:
    plan = load_plan(run.plan)
    golden = np.load(run.golden)["inputs"]
    inputs = bench_inputs(run, plan, 6)
    np.testing.assert_array_equal(inputs["input"], np.concatenate([golden, golden[:2]]))
    run.golden.unlink()
    assert bench_inputs(run, plan, 6)["input"].shape == (6, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "flag"), [({"batches": ()}, "--batch"), ({"batches": (0,)}, "--batch"), ({"threads": 0}, "--threads")]
)
def test_settings_are_checked(run: RunDir, changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(SbsError, match=flag):
        bench(run, **changes)


def test_verdicts_say_who_won() -> None:
    slower, faster = timed_row(speedup_vs_fp32=0.5), timed_row(speedup_vs_fp32=2.5)
    words = verdicts([slower, faster, failed_row("no GPU")])
    assert "SLOWER" in words[0] and "0.50x" in words[0]
    assert "2.50x as fast" in words[1]
    assert words[2].endswith("not measured: no GPU")
    (undecided,) = verdicts([timed_row(speedup_vs_fp32=None, speedup_interval=(3.0, 20.0))])
    assert "no verdict" in undecided and "3.00x and 20.00x" in undecided
    assert verdicts([timed_row(precision="fp32")]) == []
    (placed,) = verdicts([timed_row(speedup_vs_fp32=1.1, layers_in_integers=0)])
    assert "every layer in float" in placed and "every" not in verdicts([timed_row(layers_in_integers=1)])[0]
