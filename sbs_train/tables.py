"""What `sbs-train` prints for people, as rich tables."""

from typing import Any

from rich.console import Console
from rich.table import Table

from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Metrics


def stages_table(plan: Plan, metrics: Metrics) -> Table:
    """A row per stage: the task's score, BOPs, reduction; the caption says whether the search had come to rest."""
    table = Table(title="stages", caption=_caption(metrics), caption_justify="left")
    measured_stages = [stage for stage in (metrics.fp32, metrics.search, metrics.finetune) if stage is not None]
    name = next((stage.score_name for stage in measured_stages if stage.score_name), "score")
    for column in ("stage", name, "BOPs", "reduction"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in ("fp32", "search", "finetune"):
        measured = getattr(metrics, stage)
        if measured is not None and measured.score is not None:
            bops = plan.cost.bops_fp32 if stage == "fp32" else plan.cost.bops
            table.add_row(stage, f"{measured.score:.2f}", si(bops), f"{plan.cost.bops_fp32 / bops:.1f}x")
    return table


def layers_table(plan: Plan) -> Table:
    """Bits and kept channels of every layer."""
    table = Table(title="plan")
    table.add_column("layer", overflow="fold")
    for column in ("weight\nbits", "input\nbits", "inputs", "outputs", "share\nof BOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in plan.layers:
        table.add_row(
            layer.name,
            str(layer.bits_w),
            str(layer.bits_a),
            f"{layer.kept_in}/{plan.group(layer.group_in).size}",
            f"{layer.kept_out}/{plan.group(layer.group_out).size}",
            f"{100 * plan.cost.shares[layer.name]:.1f} %",
        )
    return table


def profile_tables(found: dict[str, Any]) -> list[Table]:
    """The tables of `sbs-train profile`: layers, channel groups, and what stays in float."""
    totals = f"{si(found['macs'])} MACs, {si(found['bops_fp32'])} FP32 BOPs, {si(found['parameters'])} parameters"
    layers = Table(title=f"layers: {totals}")
    for column in ("layer", "kind", "MACs", "weights", "input group", "output group"):
        number = column in ("MACs", "weights")
        layers.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in found["layers"]:
        layers.add_row(row["name"], row["kind"], si(row["macs"]), si(row["weights"]), row["group_in"], row["group_out"])
    groups = Table(title="channel groups")
    for column in ("group", "channels", "prunable"):
        groups.add_column(column, justify="right" if column == "channels" else "left", overflow="fold")
    for row in found["groups"]:
        groups.add_row(row["id"], str(row["size"]), "yes" if row["prunable"] else f"no: {row['reason']}")
    left = Table(title="left in float")
    for column in ("layer", "why"):
        left.add_column(column, overflow="fold")
    for row in found["layers"]:
        if not row["quantizable"]:
            left.add_row(row["name"], row["reason"])
    for row in found["additions"]:
        if not row["quantizable"]:
            left.add_row(f"addition {row['name']}", row["reason"])
    for name in found["idle_layers"]:
        left.add_row(name, "it is not called for an image of zeros (or another layer computes it)")
    if found["other_macs"]:
        left.add_row(f"{si(found['other_macs'])} MACs", "products outside of layers (attention, F.conv2d): no BOPs")
    return [layers, groups, *([left] if left.row_count else [])]


def cliffs_table(found: dict[str, Any]) -> Table:
    """The cliffs among the `budgets` of `sbs-train profile`."""
    caption = "a few percent more ms keep many more MACs; by the device's prices alone, every MAC counts alike"
    table = Table(title="cliffs", caption=caption, caption_justify="left")
    for column in ("ms", "MACs kept", "channels"):
        table.add_column(column, justify="left" if column == "channels" else "right", overflow="fold")
    for cliff in found["cliffs"]:
        (ms, more_ms), (macs, more_macs) = cliff["ms"], cliff["macs"]
        channels = ", ".join(f"{group} {old} → {new}" for group, (old, new) in cliff["channels"].items())
        table.add_row(f"{ms:.4g} → {more_ms:.4g}", f"{100 * macs:.1f} → {100 * more_macs:.1f} %", channels)
    return table


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    Console(highlight=False).print(table)


def _caption(metrics: Metrics) -> str | None:
    """What is to say of the search: its flips, and the tournament's winner where it is not the search's own plan."""
    winner, flips = metrics.search.tournament.winner, _flips(metrics)
    if winner in (None, "search"):
        return flips
    return "\n".join(filter(None, (flips, f"tournament: {winner} was better than the search's own plan, and is kept")))


def _flips(metrics: Metrics) -> str | None:
    """A line on gates that changed in the search's last epoch; None for a run without history."""
    last = metrics.search.history[-1] if metrics.search.history else None
    if last is None or last.flips is None:
        return None
    gates = sum(len(margins) for name, margins in last.margins.items() if not name.startswith("p:"))
    among = [f"{gates} bit gates"] if gates else []
    among += [f"{len(last.kept)} prunable groups"] if last.kept else []
    count = round(last.flips)
    text = f"gates: {count} {'flip' if count == 1 else 'flips'} in the last epoch of the search"
    return f"{text} ({', '.join(among)})" if among else text


def si(value: float) -> str:
    """A number with four digits and an SI prefix: 41.8 G."""
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.4g} {unit}"
    return f"{value:.4g}"
