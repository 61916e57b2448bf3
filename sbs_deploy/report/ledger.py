"""One run's evidence joined: plan, metrics, manifests, validation and bench.json.

A value that was not measured is None and shows as a dash.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.build import integer_summary
from sbs_deploy.engines.artifacts import PLANNED
from sbs_deploy.measure.ledger.layers import LayerLedger
from sbs_deploy.measure.ledger.read import run_ledgers
from sbs_deploy.report.codes import Histogram, code_histograms
from sbs_deploy.report.goal import Goal, search_goal
from sbs_deploy.report.history import SearchHistory, search_history
from sbs_deploy.report.placements import EnginePlacement, engine_placements
from sbs_deploy.report.provenance import Provenance, run_provenance, train_command
from sbs_deploy.report.stages import StageRow, as_it_lies_here, stage_rows
from sbs_deploy.validate.run import validation_is_current
from sbs_train.contract import rundir
from sbs_train.contract.config import data_words
from sbs_train.contract.device import search_device
from sbs_train.contract.documents import metrics_of
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan, load_plan
from sbs_train.contract.records import Metrics, SearchDevice, Tournament
from sbs_train.contract.results import BenchFile, Config, read_bench, read_config
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.validation import Validation, read_validation


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All data of the report."""

    run: str
    data: str | None
    plan: Plan
    plan_sha256: str
    stages: tuple[StageRow, ...]
    timed: tuple[LayerLedger, ...]
    """Layer ledgers of all engines of the plan with timed layers."""
    codes: tuple[Histogram, ...]
    bench: BenchFile
    """bench.json; rows of rebuilt files have an error instead of numbers."""
    validation: Validation | None
    """Validation of the current files; None if they were not validated."""
    executed: tuple[tuple[str, str], ...]
    """(engine, how many of its quantized layers run in integers, and which do not)."""
    provenance: tuple[Provenance, ...]
    command: str | None
    """The command that trains the run again; None for settings of another version."""
    seed: int | None
    seconds: dict[str, float]
    missing: tuple[str, ...]
    """Missing parts, with the commands that make them."""
    history: SearchHistory | None
    """History of the search; None if the run has none."""
    tournament: Tournament
    """The search's plan against simple ones; without entrants if there was no tournament."""
    goal: Goal | None
    """The target and its outcome; None without a target."""
    placements: tuple[EnginePlacement, ...]
    """How the precisions of engines were chosen, where that was measured."""


def make_ledger(run: RunDir) -> Ledger:
    """Read everything the run holds; only the plan is required.

    Raises:
        SbsError: the plan is missing, a file is damaged, or bench.json belongs to another plan.
    """
    plan = load_plan(run.require(run.plan, "sbs-train"))
    plan_sha256 = rundir.sha256_of(run.plan)
    config, metrics, bench, validation = read_config(run), metrics_of(run), read_bench(run), read_validation(run)
    if validation is not None and not validation_is_current(run):
        validation = None
    if bench is not None and bench.plan_sha256 != plan_sha256:
        raise SbsError(f"{run.bench} measured another plan; run `sbs-deploy bench` again")
    missing = [
        f"{path.name} (make it with `{command}`)"
        for path, found, command in (
            (run.metrics, run.metrics.is_file(), "sbs-train"),
            (run.validation, validation, "sbs-deploy validate"),
            (run.bench, bench, "sbs-deploy bench"),
        )
        if not found
    ]
    bench = bench or BenchFile()
    rows = tuple(as_it_lies_here(run, row) for row in bench.rows)
    stale = [row for row, was in zip(rows, bench.rows, strict=True) if row is not was]
    bench = bench.model_copy(update={"rows": rows, "verdicts": () if stale else bench.verdicts})
    device, unread = _device_of(config, metrics) if rows else (metrics.budget.device, [])
    timed, untimed = run_ledgers(run, plan, rows)
    return Ledger(
        run=run.root.resolve().name,
        data=data_words(config.data, config.task) if config.data else None,
        plan=plan,
        plan_sha256=plan_sha256,
        stages=tuple(stage_rows(run, plan, metrics, rows, validation)),
        timed=tuple(timed),
        codes=code_histograms(run, plan),
        bench=bench,
        validation=validation,
        executed=tuple(_executed(run, plan_sha256)),
        provenance=tuple(run_provenance(run, metrics.budget.device)),
        command=train_command(run),
        seed=config.seed,
        seconds=metrics.seconds,
        missing=(*missing, *(f"{row.artifact}: {row.error}" for row in stale), *unread, *untimed),
        history=search_history(plan, config, metrics),
        tournament=metrics.search.tournament,
        goal=search_goal(plan, config, metrics, rows, device),
        placements=tuple(engine_placements(run)),
    )


def _device_of(config: Config, metrics: Metrics) -> tuple[SearchDevice | None, list[str]]:
    """(the device of the search's cost, what is missing): of the run's record, as the file may be gone or changed."""
    if metrics.budget.device is not None or config.cost is None:
        return metrics.budget.device, []
    try:
        return search_device(Path(config.cost)), []
    except SbsError as error:
        return None, [f"the device that the search's milliseconds are of ({error})"]


def _executed(run: RunDir, plan_sha256: str) -> Iterator[tuple[str, str]]:
    for path in sorted(run.engines.glob("model.*")):
        if path.name.split(".")[1] in PLANNED and rundir.manifest_path(path).is_file():
            manifest = rundir.read_manifest(path)
            if manifest.made_from.get(run.plan.name) == plan_sha256:
                yield f"engine {path.name}", integer_summary(manifest.details)
