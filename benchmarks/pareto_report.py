"""The page and the plot of the points of `pareto.py`."""

import statistics
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pages import publish, table

Point = dict[str, Any]

UNIFORM = ("W8A8", "W4A4", "W2A4", "W4A2", "W2A2")
HEADER = "method | reduction | expected ms | top-1 % | spread | test loss | channels kept | seeds"
MARKERS = {"uniform": "s--", "SBS": "o-", "SBS-Q": "^", "random": "x", "thresholds": "v"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a network: the mean over its seeds."""

    network: str
    method: str
    points: list[Point]

    @property
    def top1(self) -> dict[int, float]:
        """Percent, by seed."""
        return {point["seed"]: point["top1"] for point in self.points}

    def mean(self, key: str) -> float:
        """Mean of a number over the seeds."""
        return float(statistics.mean(point[key] for point in self.points))

    def cells(self) -> list[str]:
        """One line of the table."""
        top1 = self.top1.values()
        ms = f"{self.mean('expected_ms'):.3f}" if self.points[0].get("expected_ms") else ""
        spread = f"{max(top1) - min(top1):.2f}" if len(top1) > 1 else "one seed"
        accuracy = [f"{self.mean('top1'):.2f}", spread, f"{self.mean('loss'):.4f}"]
        kept = f"{100 * self.mean('kept_channels'):.0f} %"
        return [self.method, f"{self.mean('reduction'):.1f}x", ms, *accuracy, kept, str(len(top1))]


def write_report(points: list[Point], out: Path) -> None:
    """Write `out` (JSON), and the page and the plot beside it."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point["network"], point["method"]), []).append(point)
    rows = [Row(network=network, method=method, points=some) for (network, method), some in groups.items()]
    by_network: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.network, row.mean("reduction"))):
        by_network.setdefault(row.network, []).append(row)
    lines = [*preface(points), ""]
    for network, some in by_network.items():
        lines += [f"## {network}", "", *table(HEADER, [row.cells() for row in some]), "", *differences(some), ""]
    plot(by_network, out.with_suffix(".png"))
    publish(out, points, lines)


def preface(points: list[Point]) -> list[str]:
    """How the numbers came about."""
    machines = sorted({f"{p['network']} on {p['machine']['device']} (torch {p['machine']['torch']})" for p in points})
    steps = sorted({tuple(point["steps"]) for point in points})
    trained = " or ".join(f"{before} steps of pretraining, then {after}" for before, after in steps)
    return [f"{date.today().isoformat()} · {'; '.join(machines)} · {trained} for every method"]


def differences(rows: list[Row]) -> list[str]:
    """Every SBS point against the best control that costs as much or more."""
    lines = []
    for row in (row for row in rows if row.method.startswith("SBS ")):
        # 4 percent: a plan may cost up to 5 percent less than its target, a uniform one hits no round number.
        cheap = [r for r in rows if r.method in UNIFORM and r.mean("reduction") >= row.mean("reduction") * 0.96]
        if cheap:
            best = max(cheap, key=lambda r: r.mean("top1"))
            # The same seed means the same float weights to start from.
            paired = [row.top1[seed] - best.top1[seed] for seed in sorted(row.top1) if seed in best.top1]
            seeds = f" ({', '.join(f'{one:+.2f}' for one in paired)} by seed)" if len(paired) > 1 else ""
            lines.append(
                f"- {row.method} minus {best.method} ({best.mean('reduction'):.0f}x), the best uniform plan as cheap "
                f"as it: {row.mean('top1') - best.mean('top1'):+.2f} points{seeds}"
            )
    return lines


def plot(by_network: dict[str, list[Row]], path: Path) -> None:
    """A PNG with one panel a network: top-1 against the reduction, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(by_network), 3.5), layout="constrained")
    axes = figure.subplots(1, len(by_network), squeeze=False)[0]
    for axis, (network, rows) in zip(axes, by_network.items(), strict=True):
        for kind, marker in MARKERS.items():
            some = [row for row in rows if kind == ("uniform" if row.method in UNIFORM else row.method.split()[0])]
            axis.plot([row.mean("reduction") for row in some], [row.mean("top1") for row in some], marker, label=kind)
        axis.set(xscale="log", xlabel="reduction of BOPs", ylabel="top-1 %", title=network)
        axis.set_xticks([16, 32, 64, 128, 256], ["16x", "32x", "64x", "128x", "256x"])
        axis.legend()
    figure.savefig(path, dpi=70)
