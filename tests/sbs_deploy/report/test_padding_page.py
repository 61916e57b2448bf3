import html
from pathlib import Path

from sbs_deploy.report.ledger import Ledger, make_ledger
from sbs_deploy.report.markdown import markdown_from_ledger
from sbs_deploy.report.page import page_from_ledger
from sbs_deploy.report.summary import Fact, facts, summarise
from sbs_train.contract import rundir
from sbs_train.contract.plan import load_plan, make_plan, save_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import make_run
from tests.sbs_deploy.report.runs import measured_run, write_bench


def padding(ledger: Ledger) -> Fact | None:
    return next((fact for fact in facts(summarise(ledger)) if fact.label == "Padding"), None)


def multiple(ledger: Ledger) -> int | None:
    found = summarise(ledger).padding
    return None if found is None else found.multiple


def searched_on(run: RunDir, path: Path) -> None:
    """As if the cost of the search had been milliseconds of that device."""
    rundir.write_json(run.config, rundir.read_json(run.config) | {"cost": str(path)})


def test_padding_is_in_page_and_markdown(tmp_path: Path) -> None:
    """16 filters between conv2 and conv3 are a multiple of 4."""
    ledger = make_ledger(measured_run(tmp_path / "run"))
    fact, found = padding(ledger), summarise(ledger).padding
    assert fact is not None and found is not None
    assert (found.multiple, found.share, found.layers) == (4, 0, ())
    assert fact.value == "0 %"
    assert fact.note in html.unescape(page_from_ledger(ledger)) and "- Padding: " in markdown_from_ledger(ledger)


def test_a_device_file_that_is_gone_is_said(tmp_path: Path) -> None:
    run = measured_run(tmp_path / "run")
    searched_on(run, tmp_path / "gone.json")
    ledger = make_ledger(run)
    assert multiple(ledger) == 4
    assert "gone.json" in ledger.missing[-1]


def test_padding_needs_no_times_of_layers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write_bench(run, layers=False)
    assert multiple(make_ledger(run)) == 4


def test_nothing_is_said_where_nothing_was_pruned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    plan = load_plan(run.plan)
    groups = [group.model_copy(update={"kept": list(range(group.size))}) for group in plan.groups]
    sizes = {group.id: group.size for group in groups}
    layers = [
        layer.model_copy(update={"kept_in": sizes[layer.group_in], "kept_out": sizes[layer.group_out]})
        for layer in plan.layers
    ]
    whole = {
        name: getattr(plan, name) for name in ("model", "inputs", "outputs", "grid", "bits_weights", "bits_activations")
    }
    save_plan(make_plan(**whole, layers=layers, groups=groups), run.plan)
    write_bench(run)
    ledger = make_ledger(run)
    assert ledger.timed and padding(ledger) is None
    assert "channels in multiples of" not in page_from_ledger(ledger) + markdown_from_ledger(ledger)


def test_nothing_is_said_before_anything_was_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    searched_on(run, tmp_path / "gone.json")
    ledger = make_ledger(run)
    assert padding(ledger) is None and "gone.json" not in " ".join(ledger.missing)
