"""Read the ledgers of a run: one per engine of the plan with timed layers, and reasons for engines without."""

from collections.abc import Collection, Sequence
from pathlib import Path

from sbs_deploy.backends.spec import backend_labelled
from sbs_deploy.engines.artifacts import DENSE, PLANNED
from sbs_deploy.engines.rebuild import source_of
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.measure.ledger.execution import Execution, executions, in_float
from sbs_deploy.measure.ledger.layers import EngineFacts, LayerLedger, layer_ledger
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.records import Details
from sbs_train.contract.results import Row, TimedRow
from sbs_train.contract.rundir import RunDir

COMMAND = "sbs-deploy bench"


def run_ledgers(run: RunDir, plan: Plan, rows: Sequence[Row]) -> tuple[list[LayerLedger], list[str]]:
    """(ledgers by batch size, the fastest engine first; sentences on measured engines without a ledger).

    Args:
        rows: rows of bench.json; the row of a file that was rebuilt has an error.
    """
    ledgers: list[LayerLedger] = []
    problems: list[str] = []
    executed: dict[str, dict[str, Execution]] = {}
    for row in rows:
        if row.precision not in PLANNED or not isinstance(row, TimedRow):
            continue
        try:
            control = _control_of(row, rows)
            for one in (row, control):
                if not one.layers:
                    raise SbsError(one.layers_error or f"add them with `{COMMAND}`")
            if row.artifact not in executed:
                model = load_onnx(graph_of(run, row))
                found = executions(model, [layer.name for layer in plan.layers])
                executed[row.artifact] = found | {
                    name: in_float(found[name]) for name in _left_in_float(run, row, found)
                }
        except SbsError as error:
            problem = f"times of the layers of {row.artifact} ({error})"
            problems += [] if problem in problems else [problem]
            continue
        engine = EngineFacts(backend=backend_labelled(row.backend), executed=executed[row.artifact])
        ledgers.append(layer_ledger(plan, row, control, engine))
    ledgers.sort(key=lambda one: (one.batch, one.latency_ms))
    return ledgers, problems


def graph_of(run: RunDir, row: Row) -> Path:
    """The ONNX file that a measured engine executes.

    Raises:
        SbsError: the file is gone or has changed.
    """
    path = run.root / row.artifact
    if path in (run.model_ort, run.model_trt):
        return run.require(path, "sbs-deploy export")
    return source_of(run, path, rundir.read_manifest(path), "sbs-deploy build")


def _left_in_float(run: RunDir, row: Row, names: Collection[str]) -> list[str]:
    """Layers whose graph is quantized and that the engine computes in float all the same, by its manifest."""
    path = run.root / row.artifact
    built = path.parent == run.engines and rundir.manifest_path(path).is_file()
    left = Details.model_validate(rundir.read_manifest(path).details).float_layers if built else None
    return [name for name in left or () if name in names]


def _control_of(row: TimedRow, rows: Sequence[Row]) -> TimedRow:
    """The row of dense FP32 with equal backend, device and batch size; SbsError if there is none."""
    for other in rows:
        alike = (other.backend, other.batch, other.device) == (row.backend, row.batch, row.device)
        if alike and isinstance(other, TimedRow) and other.label == f"{DENSE} dense":
            return other
    raise SbsError(f"{row.backend} ran no dense FP32 control; measure it with `{COMMAND}`")
