import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.spec import choose_backend
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.measure import units
from sbs_deploy.measure.protocol import Protocol
from sbs_deploy.measure.run import BenchSettings, bench_run
from sbs_deploy.report.ledger import Ledger, StageRow, make_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.validate.run import validation_sources
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.histories import record_history, search_rows

NASTY = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
QUICK = Protocol(warmup_ms=0.0, warmup_iterations=2, rounds=3, block_ms=0.1, block_iterations=(2, 2))


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        if self.inside == "td":
            self.cells[-1] += data


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", model_name=NASTY, layer_prefix="<b>layer</b>.")


def measured(run: RunDir) -> Ledger:
    pytest.importorskip("onnxruntime")
    bench_run(run, BenchSettings(against=("slim",), protocol=QUICK), lambda message: None)
    rundir.write_json(
        run.validation, {"passed": True, "max_abs_diff": 0.01, "top1_agreement": 100.0, "top1_integer": 97.5}
    )
    rundir.write_manifest(run.validation, validation_sources(run))
    return make_ledger(run)


def test_a_verdict_on_other_files_is_not_reported(run: RunDir) -> None:
    measured(run)
    run.golden.write_bytes(run.golden.read_bytes() + b"!")
    ledger = make_ledger(run)
    assert not ledger.validation and any("validation.json" in item for item in ledger.missing)


def test_ledger_joins_what_the_run_holds(run: RunDir) -> None:
    ledger = measured(run)
    assert [row.stage for row in ledger.stages] == [
        "fp32",
        "search",
        "finetune",
        "fp32 slim · onnxruntime",
        "int8 · onnxruntime",
    ]
    fp32, search, finetune, slim, int8 = ledger.stages
    assert (fp32.score, search.score, finetune.score, slim.score) == (98.5, 95.25, 97.75, None)
    assert int8.score == 97.5
    # By hand: 3*16, 16*32 and 32*16 3x3 filters and a 16*10 linear layer; half the middle channels pruned.
    weights = (3 * 16 * 9, 16 * 32 * 9, 32 * 16 * 9, 160)
    assert fp32.size_bytes == 4 * sum(weights)
    assert finetune.size_bytes == weights[0] + weights[1] / 2 * 2 / 8 + weights[2] / 2 + weights[3] * 4
    assert finetune.bops == 64 * (weights[0] * 64 + weights[1] / 2 * 8 + weights[2] / 2 * 64) + 160 * 1024
    assert int8.bops == 64 * 64 * (weights[0] + weights[1] / 2 + weights[2] / 2) + 160 * 1024
    assert finetune.reduction == pytest.approx(fp32.bops / finetune.bops)
    assert int8.reduction == pytest.approx(fp32.bops / int8.bops)
    assert fp32.speedup == 1 and int8.latency_p50_ms is not None
    assert finetune.latency_p50_ms is None and finetune.speedup is None
    assert ledger.missing == ()
    assert {item.artifact for item in ledger.provenance} >= {"deploy/model.ort.onnx", "deploy/golden.npz"}


def build(run: RunDir, **changes: Any) -> Path:
    options = BuildOptions(precision="int8", choice=choose_backend("onnxruntime"), **changes)
    return engine_stage(run, options).path


def int8_row(run: RunDir) -> StageRow:
    (row,) = [row for row in make_ledger(run).stages if row.stage.startswith("int8")]
    return row


def test_an_engine_of_another_graph_has_no_validated_accuracy(run: RunDir) -> None:
    build(run)
    measured(run)
    assert int8_row(run).score == 97.5
    build(run, activations="promote")
    assert int8_row(run).latency_p50_ms is None, "measured before it was built again"
    assert "run `sbs-deploy bench`" in int8_row(run).note
    measured(run)
    assert int8_row(run).score is None and int8_row(run).latency_p50_ms is not None


def test_missing_stages_and_files_are_tolerated_and_said(run: RunDir) -> None:
    rundir.write_json(run.metrics, {"search": {"top1": 90.0}})
    ledger = make_ledger(run)
    assert [(row.stage, row.score) for row in ledger.stages] == [("fp32", None), ("search", 90.0)]
    assert [item.split()[0] for item in ledger.missing] == ["validation.json", "bench.json"]
    assert "not measured yet" in page_from_ledger(ledger)


def test_a_bench_of_another_plan_is_refused(run: RunDir) -> None:
    measured(run)
    document = rundir.read_json(run.bench)
    rundir.write_json(run.bench, document | {"plan_sha256": "0" * 64})
    with pytest.raises(SbsError, match="measured another plan"):
        make_ledger(run)


def test_page_is_self_contained(run: RunDir) -> None:
    text = page_from_ledger(measured(run))
    page = Page(text)
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "data"} & set(attributes), (tag, attributes)
        assert tag not in ("link", "iframe", "object", "embed", "base", "img")
    assert not re.search(r"@import|url\(", text[: text.index("</style>")])
    assert text.count("plotly.js v") <= 2
    assert sum(len(script) > 1_000_000 for script in page.scripts) == 1, "plotly's script is there, once"


def test_page_escapes_every_name(run: RunDir) -> None:
    ledger = measured(run)
    text = page_from_ledger(ledger)
    outside = text.replace("&lt;", "")
    assert NASTY not in outside and "<b>layer" not in text
    assert "{{7*7}}" in text and ">49<" not in text
    page = Page(text)
    assert "<b>layer</b>.conv1" in page.cells


def figures_of(page: Page) -> dict[str, Any]:
    """Every figure by the id of the element it is drawn in; each element is there."""
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "script" and "id" in attributes]
    texts = [script for script in page.scripts if script.startswith('{"data"')]
    names = [str(name).removesuffix("-figure") for name in ids]
    assert set(names) <= {attributes.get("id") for tag, attributes in page.elements if tag == "div"}
    return {name: json.loads(text) for name, text in zip(names, texts, strict=True)}


def test_charts_hold_the_plan(run: RunDir) -> None:
    figures = figures_of(Page(page_from_ledger(measured(run))))
    assert list(figures) == ["bops", "steps", "plan", "latency"]
    series = {trace["name"]: trace for trace in figures["plan"]["data"]}
    assert series["weight bits"]["y"] == [8, 2, 8, 32] and series["activation bits"]["y"] == [8, 4, 8, 32]
    assert series["channels kept"]["y"] == [16, 16, 16, 10]
    assert series["channels pruned"]["y"] == [0, 16, 0, 0] and series["channels pruned"]["base"] == [16, 16, 16, 10]
    assert sum(series["share of BOPs"]["y"]) == pytest.approx(100)
    assert all(trace["x"][0] == "&lt;b&gt;layer&lt;/b&gt;.conv1" for trace in series.values())
    assert len({series[name]["yaxis"] for name in ("weight bits", "channels kept", "share of BOPs")}) == 3
    assert len(figures["latency"]["data"][0]["x"]) == 3


def test_page_shows_the_search(run: RunDir) -> None:
    record_history(run, search_rows("<b>layer</b>."))
    text = page_from_ledger(make_ledger(run))
    page = Page(text)
    assert list(figures_of(page)) == ["bops", "plan", "search"]
    start = page.cells.index("<b>layer</b>.conv2", page.cells.index("<b>layer</b>.fc"))  # behind the table of layers
    assert page.cells[start + 2 : start + 6] == [
        "2",
        "4 bits: −0.002, 8 bits: −0.01",
        "4",
        "4 bits: +0.05, 8 bits: −0.04",
    ]
    group = page.cells.index("b", start)
    assert page.cells[group : group + 4] == ["b", "<b>layer</b>.conv3", "16 of 32", "+0.0007"]
    words = " ".join(text.split())
    assert "epoch 3, whose plan was kept (validation top1 95.0, lambda 0.4)" in words
    assert "<b>layer" not in text


def test_page_shows_the_tournament_and_what_it_kept_instead(run: RunDir) -> None:
    record_history(run, search_rows())
    metrics = rundir.read_json(run.metrics)
    metrics["search"]["tournament"] = {
        "entrants": [
            {"name": "search", "reduction": 60.5, "val_loss": 0.5, "val_loss_trained": 0.4, "kept": False},
            {"name": "uniform <W4A4>", "reduction": 62.0, "val_loss": 0.45, "val_loss_trained": 0.25, "kept": True},
            {"name": "width 0.5 W8A8", "reduction": 61.0, "val_loss": 3.0, "val_loss_trained": None, "kept": False},
        ],
        "moves": [{"name": "weights of conv2 4 → 8 bits", "change": -0.01, "error": 0.002}],
        "moves_tried": 5,
        "steps": 8,
        "seconds": 3.0,
    }
    rundir.write_json(run.metrics, metrics)
    page = Page(page_from_ledger(make_ledger(run)))
    start = page.cells.index("search", page.cells.index("61.0x") - 12)
    assert page.cells[start : start + 5] == ["search", "60.5x", "0.5", "0.4", ""]
    assert page.cells[start + 5 : start + 10] == ["uniform <W4A4>", "62.0x", "0.45", "0.25", "kept"]
    assert page.cells[start + 10 : start + 14] == ["width 0.5 W8A8", "61.0x", "3.00", "–"]


@pytest.mark.parametrize(("metric", "word"), [("loss", "lambda times"), ("error", "learned threshold")])
def test_page_says_what_a_margin_is(run: RunDir, metric: str, word: str) -> None:
    record_history(run, search_rows(), metric=metric)
    assert word in page_from_ledger(make_ledger(run))


def test_page_of_a_history_with_gaps(run: RunDir) -> None:
    kept = ("epoch", "bits_w", "bits_a")
    record_history(run, [{key: row[key] for key in kept} for row in search_rows("<b>layer</b>.")])
    text = page_from_ledger(make_ledger(run))
    assert "validation score –, lambda –" in text and "least margin" not in text


def test_page_of_a_run_without_history_has_no_search(run: RunDir) -> None:
    text = page_from_ledger(make_ledger(run))
    assert "<h2>The search</h2>" not in text and "undefined" not in text[: text.index("<script>")]


def test_page_offers_no_upload(run: RunDir) -> None:
    """plotly's charts have a button that sends them to a server unless it is turned off."""
    text = page_from_ledger(make_ledger(run))
    own = text[text.rindex("<script>") :]
    assert 'showSendToCloud: false, plotlyServerURL: ""' in own


def test_low_bits_are_said_to_execute_as_int8(run: RunDir) -> None:
    ledger = make_ledger(run)
    text = page_from_ledger(ledger)
    assert "2- and 4-bit layers execute as INT8" in text
    assert units.si(ledger.plan.deployable_bops()) in text


def test_slower_int8_is_red(run: RunDir) -> None:
    measured(run)
    document = rundir.read_json(run.bench)
    document["verdicts"] = ["INT8 is SLOWER than FP32 here: x"]
    rundir.write_json(run.bench, document)
    assert '<p class="verdict slower">INT8 is SLOWER' in page_from_ledger(make_ledger(run))


def test_page_is_written(run: RunDir) -> None:
    run.report.write_text(page_from_ledger(make_ledger(run)))
    assert run.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0479, "0.0479"),
        (999.7, "1.00 k"),
        (41.6e6, "41.6 M"),
        (1.5e12, "1.50 T"),
        (512, "512"),
    ],
)
def test_si(value: float | None, text: str) -> None:
    assert units.si(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.00345, "+0.0034"),
        (-0.0000058, "−0.0000058"),
        (-3e-8, "−3e-08"),
        (12.3, "+12"),
        (-1234.0, "−1200"),
    ],
)
def test_signed(value: float | None, text: str) -> None:
    assert units.signed(value) == text
