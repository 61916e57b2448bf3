from pathlib import Path

import pytest

from sbs_deploy.cli import main
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.run import bench_run
from sbs_deploy.report.ledger import Ledger, make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.summary import sentences, summarise
from sbs_train.contract import rundir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import measured_run, write_bench
from tests.sbs_deploy.report.test_report import NASTY, Page, figures_of

QUICK = Protocol(warmup_ms=0.0, warmup_iterations=2, rounds=3, block_ms=0.1, block_iterations=(2, 2))


def test_a_real_bench_gives_every_layer_a_verdict(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run = make_run(tmp_path / "run")
    bench_run(
        run, batches=(1, 2), against=(), threads=1, builds=1, protocol=QUICK, progress=lambda message: None, layers=True
    )
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
    assert make_ledger(measured_run(tmp_path / "whole")).verdicts and not ledger.verdicts
    assert any(item.startswith("deploy/model.ort.onnx: changed") for item in ledger.missing)


def test_a_control_that_is_missing_is_said(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    bench = rundir.read_json(run.bench)
    rundir.write_json(run.bench, bench | {"rows": bench["rows"][1:]})
    ledger = make_ledger(run)
    assert not ledger.timed and "ran no dense FP32 control" in ledger.missing[-1]


def test_the_summary_in_words(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    ledger = make_ledger(run)
    accuracy, speed, cost, lever, _ = sentences(summarise(ledger))
    assert accuracy.endswith(
        "97.75 % of the test images correctly, 0.75 percentage points fewer than the float network (98.50 %)."
    )
    assert speed == (
        "On cpu of a test (onnxruntime) an image takes 5.00 ms instead of 10.0 ms in dense FP32 with the same engine: "
        "2.00x as fast (95 % interval 1.80x to 2.20x)."
    )
    assert "of the gain that the latter promise, 25 % was realised" in cost
    assert lever.startswith("What would raise it most: conv3 (“not faster”) takes 2.5 of 5 ms")


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
    assert (summary.engine["backend"], summary.dense["latency_p50_ms"]) == ("openvino", 6.0)
    assert ledger.timed[0] is summary.timed, "whose layers are unfolded"
    speed = sentences(summary)[1]
    assert speed.startswith("On cpu of a test (openvino) an image takes 4.00 ms instead of 6.00 ms in dense FP32")
    assert speed.endswith("with the same engine: 1.50x as fast.")


def test_a_faster_fp32_of_another_engine_is_said(tmp_path: Path) -> None:
    said = sentences(summarise(two_engines(tmp_path / "run", fp32_ms=12.0)))[1]
    assert "instead of 12.0 ms in dense FP32 with the same engine: 3.00x as fast." in said
    assert said.endswith("Dense FP32 is faster in onnxruntime (10.0 ms); against that it is 2.50x as fast.")


def test_a_slower_engine_is_said_to_be(tmp_path: Path) -> None:
    ledger = make_ledger(measured_run(tmp_path / "run", int8_ms=20.0))
    said = " ".join(sentences(summarise(ledger)))
    assert "0.5x the speed, so it is SLOWER" in said and "none of that became speed" in said


def test_a_run_that_was_not_measured_says_so(tmp_path: Path) -> None:
    ledger = make_ledger(make_run(tmp_path / "run"))
    assert "Nothing has been measured yet" in " ".join(sentences(summarise(ledger)))
