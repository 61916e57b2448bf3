import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.cli import main
from sbs_deploy.report.comparison import compare, pareto
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


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    costs, gains = [float(x) for x, _ in points], [float(y) for _, y in points]
    front = {(costs[i], gains[i]) for i in pareto(costs, gains)}
    unbeaten = {
        (x, y)
        for x, y in zip(costs, gains, strict=True)
        if not any((a <= x and b >= y) and (a, b) != (x, y) for a, b in zip(costs, gains, strict=True))
    }
    assert front == unbeaten


def test_runs_of_one_machine_need_no_words(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "a", 97.0), ledger(tmp_path / "b", 95.0, int8_ms=4.0)])
    assert [point.name for point in found.points] == ["a", "b"]
    assert [point.latency_ms for point in found.points] == [5.0, 4.0]
    assert found.notes == ("a and b have one and the same plan.",)
    assert found.points[0].top1 == 97.0 and found.points[0].top1_fp32 == 98.5


def test_what_is_mixed_is_said(tmp_path: Path) -> None:
    runs = [
        ledger(tmp_path / "a"),
        ledger(tmp_path / "b", model_name="resnet56"),
        ledger(tmp_path / "c", cpu="another cpu"),
        make_ledger(make_run(tmp_path / "d")),
    ]
    notes = "\n".join(compare(runs).notes)
    assert "Different models" in notes and "resnet20: a, c, d; resnet56: b" in notes
    assert "Different machines, so their latencies cannot be compared" in notes and "another cpu" in notes
    assert "Not measured, so without a latency: d" in notes


def test_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "x" / "run"), ledger(tmp_path / "y" / "run")])
    assert [point.name for point in found.points] == ["run (1)", "run (2)"]


def test_fronts_are_for_each_machine(tmp_path: Path) -> None:
    found = compare([ledger(tmp_path / "a"), ledger(tmp_path / "b", cpu="another"), ledger(tmp_path / "c", 90.0)])
    figure = latency_front(found.points)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(trace.y) for trace in lines] == [[97.75], [97.75]], "c is beaten by a on the same machine"
    assert list(lines[0].x) == [0.005], "in seconds"
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
    assert "<b>x" not in text and "have one and the same plan" in text and len(text) < 8e6
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
