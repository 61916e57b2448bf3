import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.cli import main
from sbs_deploy.report.comparison import compare
from sbs_deploy.report.comparison_charts import latency_front, size_front
from sbs_deploy.report.ledger import Ledger, make_ledger
from sbs_train.contract import rundir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import measured_run


def ledger(root: Path, top1: float = 97.75, **more: Any) -> Ledger:
    run = measured_run(root, **more)
    metrics = rundir.read_json(run.metrics)
    rundir.write_json(run.metrics, metrics | {"finetune": {"top1": top1}})
    return make_ledger(run)


def also_on(root: Path, *settings: tuple[str, int, float]) -> Ledger:
    """A run that was measured with other engines and batches as well: (backend, batch, milliseconds)."""
    run = measured_run(root)
    bench = rundir.read_json(run.bench)
    dense, _, int8 = bench["rows"]
    for backend, batch, ms in settings:
        bench["rows"].append(dense | {"backend": backend, "batch": batch})
        bench["rows"].append(
            int8 | {"backend": backend, "batch": batch, "latency_p50_ms": ms, "speedup_vs_fp32": 10.0 / ms}
        )
    rundir.write_json(run.bench, bench)
    return make_ledger(run)


def only_on(root: Path, *settings: tuple[str, int, float]) -> Ledger:
    """The same without what `measured_run` measures."""
    ledger = also_on(root, *settings)
    return dataclasses.replace(ledger, bench=ledger.bench.model_copy(update={"rows": ledger.bench.rows[3:]}))


def front_lines(figure: Any) -> dict[str, list[tuple[str, float]]]:
    """(run, cost) of the marks of every line."""
    marks = [trace for trace in figure.data if trace.mode == "markers+text"]
    return {trace.name: list(zip(trace.text, trace.x, strict=True)) for trace in marks}


def test_runs_are_shown_on_the_engine_that_most_of_them_share(tmp_path: Path) -> None:
    """a is fastest with OpenVINO and b with ONNX Runtime at batch 8, but what all three have is ONNX Runtime."""
    found = compare(
        [
            also_on(tmp_path / "a", ("openvino", 1, 2.0)),
            also_on(tmp_path / "b", ("onnxruntime", 8, 3.0)),
            ledger(tmp_path / "c", int8_ms=4.0),
        ]
    )
    assert [(point.backend, point.batch, point.latency_ms) for point in found.points] == [
        ("onnxruntime", 1, 5.0),
        ("onnxruntime", 1, 5.0),
        ("onnxruntime", 1, 4.0),
    ]
    assert len(found.notes) == 1 and found.notes[0].endswith(": a, b, c).")


def test_every_measurement_is_in_the_chart(tmp_path: Path) -> None:
    runs = [
        also_on(tmp_path / "a", ("openvino", 1, 2.0), ("openvino", 8, 9.0)),
        also_on(tmp_path / "b", ("openvino", 1, 3.0)),
    ]
    assert front_lines(latency_front(compare(runs).points)) == {
        "onnxruntime, cpu of a test, batch 1": [("a", 5.0), ("b", 5.0)],
        "openvino, cpu of a test, batch 1": [("a", 2.0), ("b", 3.0)],
        "openvino, cpu of a test, batch 8": [("a", 9.0)],
    }


def test_only_runs_without_a_common_engine_cannot_be_compared(tmp_path: Path) -> None:
    runs = [
        also_on(tmp_path / "a", ("openvino", 1, 2.0)),
        ledger(tmp_path / "b"),
        only_on(tmp_path / "c", ("openvino", 1, 3.0)),
    ]
    assert compare(runs).notes[0].endswith("latencies do not compare: b and c.")


def test_engines_and_batches_in_common_are_not_enough(tmp_path: Path) -> None:
    runs = [
        also_on(tmp_path / "a", ("openvino", 8, 2.0)),
        only_on(tmp_path / "b", ("onnxruntime", 8, 2.0), ("openvino", 1, 2.0)),
    ]
    (note, _) = compare(runs).notes
    assert note.endswith("latencies do not compare: a and b.")


def test_equal_runs_are_on_the_front_together(tmp_path: Path) -> None:
    """As in the front of a sweep."""
    figure = size_front(compare([ledger(tmp_path / "a"), ledger(tmp_path / "b")]).points)
    (line,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert list(line.y) == [97.75, 97.75]


def test_runs_of_one_machine_need_no_words(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "a", 97.0), ledger(tmp_path / "b", 95.0, int8_ms=4.0)])
    assert [point.name for point in found.points] == ["a", "b"]
    assert [point.latency_ms for point in found.points] == [5.0, 4.0]
    assert len(found.notes) == 1 and found.notes[0].endswith(": a, b).")
    assert found.points[0].score == 97.0 and found.points[0].score_fp32 == 98.5


def test_what_is_mixed_is_said(tmp_path: Path) -> None:
    runs = [
        ledger(tmp_path / "a"),
        ledger(tmp_path / "b", model_name="resnet56"),
        ledger(tmp_path / "c", cpu="another cpu"),
        make_ledger(make_run(tmp_path / "d")),
    ]
    notes = "\n".join(compare(runs).notes)
    assert "Different models" in notes and "resnet20: a, c, d; resnet56: b" in notes
    assert "latencies do not compare: a and c; b and c." in notes
    assert "Not measured, so without a latency: d" in notes


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "x" / "run"), ledger(tmp_path / "y" / "run")])
    assert [point.name for point in found.points] == ["run (1)", "run (2)"]


def test_fronts_are_for_each_machine(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "a"), ledger(tmp_path / "b", cpu="another"), ledger(tmp_path / "c", 90.0)])
    figure = latency_front(found.points)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(trace.y) for trace in lines] == [[97.75], [97.75]], "c is beaten by a on the same machine"
    assert list(lines[0].x) == [5.0], "in milliseconds"
    assert [text for marks in front_lines(figure).values() for text, _ in marks] == ["a", "c", "b"]
    assert size_front(compare([make_ledger(make_run(tmp_path / "d"))]).points) is not None


def test_the_command_writes_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        measured_run(tmp_path / name, model_name="<b>x</b>")
    out, notes = tmp_path / "runs.html", tmp_path / "runs.md"
    arguments = ["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--markdown", str(notes)]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["report"] == str(out) and [point["name"] for point in document["points"]] == ["a", "b"]
    text = out.read_text(encoding="utf-8")
    assert "<b>x" not in text and "have the same plan" in text and len(text) < 8e6
    assert notes.read_text().startswith("### Runs")


def test_several_runs_need_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        measured_run(tmp_path / name)
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "name it with --out" in capsys.readouterr().err


def test_markdown_goes_to_stdout_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured_run(tmp_path / "a")
    assert main(["report", str(run.root), "--markdown", "-"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("### resnet20") and "\nreport: " not in out and run.report.is_file()


def test_json_follows_a_page_on_stdout_as_a_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = measured_run(tmp_path / "a")
    assert main(["report", str(run.root), "--out", "-", "--json"]) == 0
    page, _, document = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    assert page.rstrip().endswith("</html>") and json.loads(document)["report"] == "-"
