"""What `sbs-train` prints for people fits 80 columns and loses nothing."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from sbs_train.contract.records import Metrics
from sbs_train.tables import layers_table, profile_tables, stages_table
from tests.sbs_deploy.graphs import small_plan

ROWS = ["conv1", "conv2", "conv3", "fc"]


def printed(table: Table) -> list[str]:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def first_column(lines: list[str]) -> str:
    """The text of the first column, its folded lines joined."""
    return "".join(line.split("│")[1].strip() for line in lines if line.startswith("│"))


def test_the_layer_names_of_a_mobilenet_stay_on_one_line() -> None:
    lines = printed(layers_table(small_plan(prefix="features.12.conv.0.0.")))
    for name in ROWS:
        assert sum(f" features.12.conv.0.0.{name} " in line for line in lines) == 1


def test_longer_layer_names_fold() -> None:
    prefix = "a_module_with_a_long_name." * 4
    lines = printed(layers_table(small_plan(prefix=prefix)))
    assert first_column(lines) == "".join(prefix + name for name in ROWS)
    assert max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert any("16/32" in line for line in lines), "numbers are not what gives way"


def test_the_stages_say_what_the_tournament_kept_instead_of_the_searchs_plan() -> None:
    for winner in ("search", "uniform W4A4"):
        entrants = [{"name": name, "reduction": 60.0, "kept": name == winner} for name in ("search", "uniform W4A4")]
        metrics = Metrics.model_validate({"search": {"top1": 90.0, "tournament": {"entrants": entrants}}})
        text = " ".join(" ".join(printed(stages_table(small_plan(), metrics))).split())
        assert ("uniform W4A4" in text) == (winner != "search")


def test_profile_tables_fold() -> None:
    name = "features.12.conv.0.0.a.rather.long.layer.name"
    row = {"name": name, "kind": "conv", "macs": 1e6, "weights": 1e3, "group_in": name, "group_out": name}
    row |= {"quantizable": False, "reason": "Standardised computes something else than Conv2d"}
    group = {"id": name, "size": 16, "prunable": False, "reason": "a residual stream: 4 layers write to it"}
    found = {
        "macs": 1e6,
        "bops_fp32": 1e9,
        "parameters": 1e3,
        "additions": [{"name": "b+0", "quantizable": True, "reason": ""}],
        "idle_layers": [],
        "other_macs": 0,
        "layers": [row],
        "groups": [group],
    }
    for table in profile_tables(found):
        lines = printed(table)
        assert first_column(lines) == name and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("flips", "said"),
    [
        (4.0, "gates: 4 flips in the last epoch of the search (3 bit gates, 1 prunable groups)"),
        (1.0, "gates: 1 flip in the last epoch"),
        (0.0, "gates: 0 flips in the last epoch"),
    ],
)
def test_stages_say_whether_the_search_came_to_rest(flips: float, said: str) -> None:
    last = {"epoch": 1, "flips": flips, "kept": {"b": 16}, "margins": {"w:x": [0.1, 0.2], "a:x": [0.1], "p:b": [0.3]}}
    metrics = {"fp32": {"top1": 99.0}, "search": {"top1": 98.0, "history": [{"epoch": 0, "flips": 77.0}, last]}}
    assert said in " ".join(" ".join(printed(stages_table(small_plan(), Metrics.model_validate(metrics)))).split())


@pytest.mark.parametrize("search", [{}, {"history": []}, {"history": [{"epoch": 0, "loss": 1.0}]}])
def test_a_run_without_history_has_no_such_line(search: dict[str, Any]) -> None:
    metrics = Metrics.model_validate({"search": {"top1": 98.0, **search}})
    assert "gates" not in " ".join(printed(stages_table(small_plan(), metrics)))


def test_stages_show_what_each_one_costs() -> None:
    plan = small_plan()
    metrics = {stage: {"top1": 90.0 + i} for i, stage in enumerate(("fp32", "search", "finetune"))}
    table = stages_table(plan, Metrics.model_validate(metrics))
    rows = [line.split() for line in printed(table) if line.startswith("│")]
    assert [(row[1], row[3]) for row in rows] == [("fp32", "90.00"), ("search", "91.00"), ("finetune", "92.00")]
    assert [row[-2] for row in rows] == ["1.0x", *[f"{plan.cost.reduction:.1f}x"] * 2]
