"""docs/results.md, .json and .svg from the points of `pareto.py`."""

import io
import statistics
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sbs_train.contract.rundir import write_json, write_text

Point = dict[str, Any]

DOCS = Path(__file__).parent.parent / "docs"
GIVEN = ("W8A8", "W4A4", "W2A4", "W4A2", "W2A2")
BAYESIAN_BITS = ((79, 91.35), (98, 91.1), (140, 90.68), (227, 89.79))
"""(reduction, top-1 %) of Bayesian Bits on ResNet-20 width 16, measured earlier (shared/method.md, section 6), from a
float network of 91.43 %."""
BAYESIAN_BITS_FP32 = 91.43


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a network, over its seeds."""

    network: str
    method: str
    reduction: float
    by_seed: dict[int, float]
    """Top-1 in percent."""
    mean: float
    low: float
    high: float
    loss: float
    seeds: int
    kept: float
    flips: list[float] | None
    """Gate flips in every epoch of the search, mean over seeds."""

    @property
    def spread(self) -> str:
        """Largest minus smallest; one seed has none."""
        return f"{self.high - self.low:.2f}" if self.seeds > 1 else "one seed"


def write_report(points: list[Point], *, quick: bool) -> None:
    """Write the three files; those of a quick run beside the others."""
    if not points:
        return
    stem = "results-quick" if quick else "results"
    rows = summarised(points)
    networks = list(dict.fromkeys(row.network for row in rows))
    lines = ["# Results: SBS against its controls on Fashion-MNIST", "", *preface(points), ""]
    for network in networks:
        lines += [f"## {network}", "", *table([row for row in rows if row.network == network]), ""]
        lines += [*differences([row for row in rows if row.network == network]), ""]
    lines += [f"![Pareto plot]({stem}.svg)", ""]
    write_json(DOCS / f"{stem}.json", {"date": date.today().isoformat(), "points": points})
    write_text(DOCS / f"{stem}.md", "\n".join(lines))
    write_text(DOCS / f"{stem}.svg", plot(rows, networks))


def summarised(points: list[Point]) -> list[Row]:
    """One row for every network and method, in the order of their cost."""
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point["network"], point["method"]), []).append(point)
    rows = []
    for (network, method), group in groups.items():
        top1 = [point["top1"] for point in group]
        flips = [point["flips"] for point in group if point["flips"]]
        rows.append(
            Row(
                network=network,
                method=method,
                reduction=statistics.mean(point["reduction"] for point in group),
                by_seed={point["seed"]: point["top1"] for point in group},
                mean=statistics.mean(top1),
                low=min(top1),
                high=max(top1),
                loss=statistics.mean(point["loss"] for point in group),
                seeds=len(group),
                kept=statistics.mean(point["kept_channels"] for point in group),
                flips=[statistics.mean(epoch) for epoch in zip(*flips, strict=True)] if flips else None,
            )
        )
    return sorted(rows, key=lambda row: (row.network, row.reduction))


def preface(points: list[Point]) -> list[str]:
    """How the numbers came about."""
    steps = sorted({tuple(point["steps"]) for point in points})
    by_network: dict[str, set[str]] = {}
    for p in points:
        by_network.setdefault(p["network"], set()).add(f"{p['machine']['device']} (torch {p['machine']['torch']})")
    machines = "; ".join(f"{network} on {', '.join(sorted(names))}" for network, names in sorted(by_network.items()))
    trained = " or ".join(f"{before} steps of pretraining, then {after}" for before, after in steps)
    return [
        f"Written by `benchmarks/pareto.py` on {date.today().isoformat()}. {machines}.",
        "",
        f"{trained} for every method, the search included; batch 128. Top-1 in percent of the 10,000 test images, mean "
        "over seeds; the validation split made every choice. Spread is the largest minus the smallest. FP32 takes the "
        "same steps. Uniform and random plans start from the same clip values as SBS, one for every bitwidth. "
        "SBS-P prunes only, SBS-Q quantizes only, `thresholds` is the search with learned thresholds.",
    ]


def table(rows: list[Row]) -> list[str]:
    """One line a method."""
    lines = [
        "| method | reduction | top-1 % | spread | test loss | channels kept | seeds | gate flips by search epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        flips = " ".join(f"{value:.0f}" for value in row.flips) if row.flips else ""
        lines.append(
            f"| {row.method} | {row.reduction:.1f}x | {row.mean:.2f} | {row.spread} | {row.loss:.4f} | "
            f"{100 * row.kept:.0f} % | {row.seeds} | {flips} |"
        )
    return lines


def differences(rows: list[Row]) -> list[str]:
    """Every SBS point against the best control that costs as much or more."""
    lines = []
    for row in rows:
        if not row.method.startswith("SBS "):
            continue
        # 4 percent: a plan may cost up to 5 percent less than its target, a uniform one hits no round number.
        controls = [r for r in rows if r.method in GIVEN and r.reduction >= row.reduction * 0.96]
        if controls:
            best = max(controls, key=lambda r: r.mean)
            # The same seed means the same float weights to start from.
            paired = [row.by_seed[seed] - best.by_seed[seed] for seed in sorted(row.by_seed) if seed in best.by_seed]
            seeds = f" ({', '.join(f'{one:+.2f}' for one in paired)} by seed)" if len(paired) > 1 else ""
            lines.append(
                f"- {row.method} minus {best.method} ({best.reduction:.0f}x), the best uniform plan as cheap as it: "
                f"{row.mean - best.mean:+.2f} points{seeds}"
            )
    return lines


def plot(rows: list[Row], networks: list[str]) -> str:
    """An SVG with one panel a network: top-1 against the reduction, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(networks), figsize=(5.5 * len(networks), 4), squeeze=False)
    kinds = (
        ("uniform", lambda m: m in GIVEN, "s--"),
        ("SBS", lambda m: m.startswith("SBS "), "o-"),
        ("SBS-Q", lambda m: m.startswith("SBS-Q"), "^"),
        ("random", lambda m: m.startswith("random"), "x"),
        ("learned thresholds", lambda m: m.startswith("thresholds"), "v"),
    )
    for axis, network in zip(axes[0], networks, strict=True):
        mine = [row for row in rows if row.network == network]
        for label, belongs, marker in kinds:
            part = [row for row in mine if belongs(row.method)]
            if part:
                error = [[row.mean - row.low for row in part], [row.high - row.mean for row in part]]
                x, y = [row.reduction for row in part], [row.mean for row in part]
                axis.errorbar(x, y, yerr=error, fmt=marker, capsize=3, label=label)
        for row in mine:
            if row.method == "FP32":
                axis.axhline(row.mean, color="grey", linewidth=0.8, label="FP32")
        if network == "resnet20-w16":
            axis.plot(*zip(*BAYESIAN_BITS, strict=True), "d:", label=f"Bayesian Bits (FP32 {BAYESIAN_BITS_FP32} %)")
        axis.set(xscale="log", xlabel="reduction of BOPs", ylabel="top-1 %", title=network)
        axis.set_xticks([16, 32, 64, 128, 256], ["16x", "32x", "64x", "128x", "256x"])
        axis.legend()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()
