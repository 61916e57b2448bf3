from pathlib import Path

import pytest

from sbs_deploy.cli import main
from sbs_deploy.measure import units
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.run import BenchSettings, bench_run
from sbs_deploy.report.ledger import Ledger, make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.summary import Fact, facts, summarise
from sbs_train.contract import rundir
from sbs_train.contract.plan import load_plan
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import measured_run, write_bench
from tests.sbs_deploy.report.test_report import NASTY, Page, figures_of

QUICK = Protocol(warmup_ms=0.0, warmup_iterations=2, rounds=3, block_ms=0.1, block_iterations=(2, 2))


def test_a_real_bench_gives_every_layer_a_verdict(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run")
    bench_run(run, BenchSettings(batches=(1, 2), against=(), protocol=QUICK), lambda message: None)
    ledger = make_ledger(run)
    assert [timed.batch for timed in ledger.timed] == [1, 2]
    for timed in ledger.timed:
        assert [entry.name for entry in timed.entries] == ["conv1", "conv2", "conv3", "fc"]
        assert all(entry.ms and entry.fp32_ms for entry in timed.entries)
        spent = sum(entry.ms or 0 for entry in timed.entries) + sum(timed.between.values())
        assert spent == pytest.approx(timed.latency_ms)


def test_bench_records_layers_unasked(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run")
    assert main(["bench", str(run.root), "--rounds", "2"]) == 0
    assert all(row["layers"] for row in rundir.read_json(run.bench)["rows"])


def test_the_page_shows_predicted_against_measured(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    page = Page(page_from_ledger(make_ledger(run)))
    figures = figures_of(page)
    scatter = {name: figures[f"scatter-1-{name}"]["data"] for name in ("paper", "deployable")}
    for traces in scatter.values():
        hovers = [text for trace in traces for text in trace["text"]]
        assert sorted(text.split("<br>")[0] for text in hovers) == [
            f"<b>{n}</b>" for n in ("conv1", "conv2", "conv3", "fc")
        ]
    assert {trace["name"] for trace in scatter["paper"]} == {
        "paid off",
        "2/4 bit executed as 8 bit",
        "not faster",
        "left in float",
    }
    assert figures["steps"]["data"][0]["y"] == [10.0, -2.0, -3.0, 5.0]
    assert figures["codes"]["data"][0]["name"] == "1 layer of 2 bits"
    assert [trace["visible"] for trace in figures["codes"]["data"]] == [True, *[False] * 4]
    start = page.cells.index("conv2")
    assert page.cells[start : start + 8] == [
        "conv2",
        "2/4 bit executed as 8 bit",
        "conv",
        "2/4",
        "8/8",
        "16/32",
        "1.18 M",
        "18.9 M",
    ]


def test_names_of_layers_are_escaped(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run", model_name=NASTY, layer_prefix=NASTY, cpu=NASTY)
    ledger = make_ledger(run)
    text = page_from_ledger(ledger)
    assert ledger.timed and NASTY not in text.replace("&lt;", "") and "<img" not in text
    hovers = [hover for trace in figures_of(Page(text))["scatter-1-paper"]["data"] for hover in trace["text"]]
    assert all("&lt;/script&gt;&lt;img" in hover and "<img" not in hover for hover in hovers)


def test_without_times_of_layers_the_command_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_bench(run, layers=False)
    ledger = make_ledger(run)
    assert not ledger.timed
    assert ledger.missing[-1] == "times of the layers of deploy/model.ort.onnx (add them with `sbs-deploy bench`)"
    assert "No times of layers yet" in page_from_ledger(ledger)


def test_an_engine_built_again_has_no_ledger(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    run.model_ort.write_bytes(run.model_ort.read_bytes() + b"\n")
    ledger = make_ledger(run)
    assert not ledger.timed and "changed since it was measured" in page_from_ledger(ledger)
    assert make_ledger(measured_run(tmp_path / "whole")).bench.verdicts and not ledger.bench.verdicts
    assert any(item.startswith("deploy/model.ort.onnx: changed") for item in ledger.missing)


def test_a_control_that_is_missing_is_said(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    bench = rundir.read_json(run.bench)
    rundir.write_json(run.bench, bench | {"rows": bench["rows"][1:]})
    ledger = make_ledger(run)
    assert not ledger.timed and "ran no dense FP32 control" in ledger.missing[-1]


def facts_of(ledger: Ledger) -> dict[str, Fact]:
    return {fact.label: fact for fact in facts(summarise(ledger))}


def test_the_summary_answers_by_label_and_number(tmp_path: Path) -> None:
    """conv3 takes 2.5 ms; of its 2 ms in FP32 half the channels in 8 bits leave an eighth, 0.25 ms."""
    run = measured_run(tmp_path / "run")
    found = facts_of(make_ledger(run))
    assert {label: fact.value for label, fact in found.items()} == {
        "Score (top1)": "97.75",
        "Speed over FP32": "2.00x",
        "Size": units.si(run.model_ort.stat().st_size, "B"),
        "Bit-Operations": units.times(load_plan(run.plan).cost.reduction),
        "Predicted gain realised": "25 %",
        "Would help most": "2.25 ms",
        "Padding": "0 %",
    }
    assert found["Score (top1)"].note.startswith("−0.75 points") and "98.50" in found["Score (top1)"].note
    assert "5.00 ms, dense FP32 10.0 ms" in found["Speed over FP32"].note
    assert "1.80x to 2.20x" in found["Speed over FP32"].note
    assert "conv3" in found["Would help most"].note


def two_engines(root: Path, *, fp32_ms: float) -> Ledger:
    """ONNX Runtime: 10 ms in FP32, 5 in INT8, 2x. OpenVINO: `fp32_ms` and 4, which gains less than 2x."""
    run = measured_run(root)
    bench = rundir.read_json(run.bench)
    dense, _, int8 = bench["rows"]
    other = {"backend": "openvino", "device": "cpu of a test (OpenVINO)"}
    times = {"speedup_vs_fp32": fp32_ms / 4.0, "speedup_interval": None, "latency_p50_ms": 4.0}
    engine = run.engines / "model.int8.openvino.onnx"
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(run.model_ort.read_bytes())
    made_from = {name: rundir.sha256_of(path) for name, path in (("model.ort.onnx", run.model_ort),)}
    rundir.write_manifest(engine, made_from, details={"precision": "int8"})
    bench["rows"] += [
        dense | other | {"latency_p50_ms": fp32_ms},
        int8 | other | times | {"artifact": str(engine.relative_to(run.root))},
    ]
    rundir.write_json(run.bench, bench)
    return make_ledger(run)


def test_the_fastest_engine_stands_for_the_run(tmp_path: Path) -> None:
    """Not the one that gains most over an FP32 that is slow."""
    ledger = two_engines(tmp_path / "run", fp32_ms=6.0)
    summary = summarise(ledger)
    assert summary.engine is not None and summary.dense is not None and summary.dense_elsewhere is None
    assert (summary.engine.backend, summary.dense.latency_p50_ms) == ("openvino", 6.0)
    assert ledger.timed[0] is summary.timed, "whose layers are unfolded"
    speed = facts_of(ledger)["Speed over FP32"]
    assert speed.value == "1.50x" and "4.00 ms, dense FP32 6.00 ms; openvino" in speed.note
    assert "interval" not in speed.note


def test_a_faster_fp32_of_another_engine_is_said(tmp_path: Path) -> None:
    found = facts_of(two_engines(tmp_path / "run", fp32_ms=12.0))
    assert found["Speed over FP32"].value == "3.00x"
    other = found["Speed over the fastest FP32"]
    assert (other.value, other.note) == ("2.50x", "onnxruntime: 10.0 ms")


def test_a_slower_engine_is_said_to_be(tmp_path: Path) -> None:
    found = facts_of(make_ledger(measured_run(tmp_path / "run", int8_ms=20.0)))
    speed = found["Speed over FP32"]
    assert speed.value == "0.5x" and speed.bad and speed.note.startswith("SLOWER")
    assert found["Predicted gain realised"].value.startswith("−")


def test_rounds_that_disagree_are_no_speed(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    bench = rundir.read_json(run.bench)
    bench["rows"][2] |= {"speedup_vs_fp32": None, "speedup_interval": [3.0, 20.0]}
    rundir.write_json(run.bench, bench)
    speed = facts_of(make_ledger(run))["Speed over FP32"]
    assert speed.value == "–" and "3.00x and 20.00x" in speed.note and not speed.bad


def test_a_run_that_was_not_measured_says_so(tmp_path: Path) -> None:
    speed = facts_of(make_ledger(make_run(tmp_path / "run")))["Speed"]
    assert speed.value == "–" and "sbs-deploy bench" in speed.note
