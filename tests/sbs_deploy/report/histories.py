"""The history of a search that ends in `small_plan`: conv2 and conv3 searched, filters of group b pruned."""

from typing import Any

from sbs_train.contract import rundir
from sbs_train.contract.rundir import RunDir


def search_rows(prefix: str = "") -> list[dict[str, Any]]:
    """Four epochs; the third one's plan is the best of the two that were validated."""
    conv2, conv3 = f"{prefix}conv2", f"{prefix}conv3"
    margins = {
        f"w:{conv2}": [-0.002, -0.01],
        f"w:{conv3}": [0.3, 0.0001],
        f"a:{conv2}": [0.05, -0.04],
        f"a:{conv3}": [0.2, 0.03],
        "p:b": [0.0007],
    }
    rows: list[dict[str, Any]] = [
        {"loss": 1.0, "lambda": 0.0, "reduction": 16.0, "flips": 0.0},
        {"loss": 0.9, "lambda": 0.5, "reduction": 31.5, "flips": 5.0},
        {"loss": 0.7, "lambda": 0.4, "reduction": 60.5, "flips": 2.0, "val_top1": 95.0, "val_loss": 0.3},
        {"loss": 0.6, "lambda": 0.3, "reduction": 61.0, "flips": 1.0, "val_top1": 94.0, "val_loss": 0.4},
    ]
    bits_w, bits_a, kept = ((8, 8), (2, 8), (2, 8), (4, 8)), ((8, 8), (8, 8), (4, 8), (4, 8)), (32, 24, 16, 16)
    for epoch, row in enumerate(rows):
        row["epoch"] = epoch
        row["bits_w"] = dict(zip((conv2, conv3), bits_w[epoch], strict=True))
        row["bits_a"] = dict(zip((conv2, conv3), bits_a[epoch], strict=True))
        row["kept"] = {"b": kept[epoch]}
        row["margins"] = margins if epoch == 2 else {name: [9.0] * len(values) for name, values in margins.items()}
    return rows


def record_history(run: RunDir, rows: list[dict[str, Any]], metric: str = "loss", target: str = "60x") -> None:
    """Put a history into a run."""
    config, metrics = rundir.read_json(run.config), rundir.read_json(run.metrics)
    rundir.write_json(run.config, config | {"target": target, "search": {"metric": metric}})
    rundir.write_json(run.metrics, metrics | {"search": metrics["search"] | {"history": rows}})
