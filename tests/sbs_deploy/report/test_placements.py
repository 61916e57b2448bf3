"""Placements of engines on the page and in the Markdown."""

from pathlib import Path

import pytest

from sbs_deploy.backends.spec import choose_backend
from sbs_deploy.build import BuildOptions, Placed, engine_stage
from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.markdown import markdown_from_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_train.contract.placement import AgainstControl, FloatLayer, Placement, TimedGraph
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.whole_run import make_whole_run

MEASURED = Placement(
    mode="measured",
    ms=1.5,
    quantized_layers=3,
    float_layers=[FloatLayer(layer="conv2", int8_ms=0.875, float_ms=0.625)],
    timed=[TimedGraph(form="activations promote", float_layers=0, ms=1.25, speed=1.28, accurate=False)],
    controls=[AgainstControl(control="fp32 slim", ms=1.2, speed=0.8, interval=[0.79, 0.81])],
    ship="fp32 slim",
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_whole_run(tmp_path / "run")


def build(run: RunDir, placement: Placement, floats: tuple[str, ...] = ()) -> None:
    placed = Placed(legalisation=Legalisation(precision="int8", float_layers=floats), placement=placement)
    engine_stage(run, BuildOptions(precision="int8", choice=choose_backend("onnxruntime")), placed)


def test_layers_times_and_advice_are_shown(run: RunDir) -> None:
    build(run, MEASURED, ("conv2",))
    ledger = make_ledger(run)
    (found,) = ledger.placements
    assert (found.engine, found.placement) == ("model.int8.onnxruntime.onnx", MEASURED)
    for text in (page_from_ledger(ledger), markdown_from_ledger(ledger)):
        for part in ("conv2", "0.875 ms", "0.625 ms", "fp32 slim", "0.8"):
            assert part in text
    assert "answers worse" in page_from_ledger(ledger)


def test_without_a_measurement_there_is_no_section(run: RunDir) -> None:
    build(run, Placement(mode="plan", why="asked for"))
    ledger = make_ledger(run)
    assert ledger.placements == ()
    assert "<h2>Placement" not in page_from_ledger(ledger) and "Placement" not in markdown_from_ledger(ledger)
