"""The scores and the page of predicted_vs_measured.py."""

from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

PREDICTORS = ("bops", "deployable_bops", "device_ms")
TAU_GOAL, ERROR_GOAL = 0.9, 0.1

Row = dict[str, Any]


def scores(rows: list[Row]) -> Row:
    """Rank correlation of every predictor with the measured time, and the device model's errors, by kind of plan."""
    kinds = {
        "all aligned": [row for row in rows if row["plan"].split()[0] in ("random", "searched")],
        "unaligned": [row for row in rows if row["plan"].startswith("unaligned")],
    }
    found: dict[str, Row] = {}
    for kind, some in kinds.items():
        ms = [row["measured_ms"] for row in some]
        errors = [abs(row["device_ms"] / row["measured_ms"] - 1) for row in some]
        found[kind] = {
            "plans": len(some),
            "median_error": float(np.median(errors)),
            "worst_error": float(np.max(errors)),
            "kendall": {key: float(kendalltau([row[key] for row in some], ms).statistic) for key in PREDICTORS},
            "spearman": {key: float(spearmanr([row[key] for row in some], ms).statistic) for key in PREDICTORS},
        }
    goal = found["all aligned"]
    met = goal["kendall"]["device_ms"] >= TAU_GOAL and goal["median_error"] <= ERROR_GOAL
    return {"scores": found, "met": met}


def page(found: Row) -> str:
    """The Markdown page."""
    tables, protocol = found["tables"], found["protocol"]
    machine = tables[0]["machine"]["before"]
    versions = ", ".join(dict.fromkeys(f"{table['engine']} {table['version']}" for table in tables))
    days = ", ".join(sorted({table["date"] for table in tables}))
    lines = [
        "# Predicted against measured",
        "",
        f"{days} · {machine['cpu']}, {machine['cores']} cores ({' '.join(machine['vector_flags'])}) · {versions}",
        "",
        "Regenerate with `python benchmarks/predicted_vs_measured.py`. One thread, batch 1, 224x224 images, random "
        f"weights; {protocol['rounds']} rounds in random order; the time of a plan is that of its quickest "
        "inference. The device model (`sbs-deploy profile-device`) never saw the plans. Random plans have random bits "
        "of 2, 4 and 8 and keep a quarter to all channels in multiples of 16; searched ones are what the "
        "search's allocation finds for random losses, by BOPs or by milliseconds. Unaligned ones keep multiples "
        "of 4.",
        "",
        "| network | engine | plans | Kendall τ: BOPs | deployable BOPs | device model | Spearman: BOPs "
        "| deployable BOPs | device model | median error | worst | goal |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for table in tables:
        for kind, score in table["scores"].items():
            tau, rho = ([f"{score[which][key]:.2f}" for key in PREDICTORS] for which in ("kendall", "spearman"))
            goal = ("met" if table["met"] else "missed") if kind == "all aligned" else ""
            lines.append(
                f"| {table['network']} | {table['engine']} | {score['plans']} {kind} | {' | '.join(tau)} "
                f"| {' | '.join(rho)} | {score['median_error']:.1%} | {score['worst_error']:.1%} | {goal} |"
            )
    lines += ["", f"Goal: device model τ at least {TAU_GOAL:g} and median error at most {ERROR_GOAL:.0%}.", ""]
    for table in tables:
        held, state = table["device"]["held_out"], table["machine"]
        lines.append(
            f"- {table['network']}, {table['engine']}: channels in steps of {table['device']['align']}; at "
            f"{held['points']} points that were not used, layers are off by {held['median_error']:.1%} (median) and "
            f"{held['p90_error']:.1%} (p90); load {state['before']['load_average_1min']} before and "
            f"{state['after']['load_average_1min']} after."
        )
    for table in tables:
        lines += ["", f"## {table['network']}, {table['engine']}", ""]
        lines += [
            "| plan | GBOPs | deployable GBOPs | predicted ms | measured ms | error |",
            "|---|---|---|---|---|---|",
        ]
        for row in sorted(table["rows"], key=lambda row: row["measured_ms"]):
            error = row["device_ms"] / row["measured_ms"] - 1
            lines.append(
                f"| {row['plan']} | {row['bops'] / 1e9:.2f} | {row['deployable_bops'] / 1e9:.2f} "
                f"| {row['device_ms']:.2f} | {row['measured_ms']:.2f} | {error:+.1%} |"
            )
    return "\n".join([*lines, ""])
