"""The ledgers of a run: of every engine of the plan whose layers were timed, and why others have none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbs_deploy.backends.spec import backend_labelled
from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.engines.rebuild import source_of
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.measure.ledger.alignment import channel_multiple
from sbs_deploy.measure.ledger.execution import Execution, executions
from sbs_deploy.measure.ledger.layers import LayerLedger, layer_ledger
from sbs_train.contract import rundir
from sbs_train.contract.device import SearchDevice
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir

COMMAND = "sbs-deploy bench"


def run_ledgers(
    run: RunDir, plan: Plan, rows: Sequence[dict[str, Any]], device: SearchDevice | None = None
) -> tuple[list[LayerLedger], list[str]]:
    """(ledgers by batch size, the fastest engine first; in words, why an engine that was measured has none).

    Args:
        rows: of bench.json, those of files that were built again since with their "error".
        device: the one that the search's cost is of, if any.
    """
    ledgers: list[LayerLedger] = []
    problems: list[str] = []
    executed: dict[str, dict[str, Execution]] = {}
    for row in rows:
        if row["precision"] not in PLANNED or row["error"] is not None:
            continue
        control = _control_of(row, rows)
        try:
            for one in (row, control):
                if not one.get("layers"):
                    raise SbsError(one.get("layers_error") or f"add them with `{COMMAND}`")
            if row["artifact"] not in executed:
                source = graph_of(run, row)
                executed[row["artifact"]] = _executions(source, plan)
        except SbsError as error:
            problem = f"times of the layers of {row['artifact']} ({error})"
            problems += [] if problem in problems else [problem]
            continue
        backend = backend_labelled(row["backend"])
        multiple = channel_multiple(backend, device)
        ledgers.append(layer_ledger(plan, row, control, executed[row["artifact"]], backend, multiple))
    ledgers.sort(key=lambda one: (one.batch, one.latency_ms))
    return ledgers, problems


def graph_of(run: RunDir, row: dict[str, Any]) -> Path:
    """The ONNX file that a measured engine executes.

    Raises:
        SbsError: it is gone, or another one.
    """
    path = run.root / row["artifact"]
    if path in (run.model_ort, run.model_trt):
        return run.require(path, "sbs-deploy export")
    return source_of(run, path, rundir.read_manifest(path), "sbs-deploy build")


def _executions(source: Path, plan: Plan) -> dict[str, Execution]:

    return executions(load_onnx(source), [layer.name for layer in plan.layers])


def _control_of(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Dense FP32 in the same backend, at the same batch size; a row that says so where there is none."""
    for other in rows:
        alike = (other["backend"], other["batch"], other["device"]) == (row["backend"], row["batch"], row["device"])
        if alike and other["error"] is None and other["label"] == f"{DENSE} dense":
            return other
    return {"layers_error": f"{row['backend']} ran no dense FP32 control; measure it with `{COMMAND}`"}
