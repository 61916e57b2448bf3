"""The directory of a sweep: its settings, a run directory for every target, and the results.

The run directory of a target is named after the target in its shortest form.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, to_dict
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.records import Metrics
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.schema import Strict
from sbs_train.contract.sweep import SweepRun
from sbs_train.contract.target import SUFFIXES

PRETRAINED = "pretrained"
_AGAIN = "delete it, and make it again with `sbs-train sweep --resume`"


class Settings(Strict):
    """settings.json: the settings of a sweep, for resuming."""

    schema_version: Literal[1] = 1
    targets: tuple[str, ...]
    config: TrainConfig
    """Settings of all runs, except their targets and weights."""


@dataclass(frozen=True)
class SweepDir:
    """Paths of one sweep."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def result(self) -> Path:
        return self.root / "sweep.json"

    @property
    def page(self) -> Path:
        return self.root / "sweep.html"

    @property
    def pretrained(self) -> RunDir:
        """The run directory of pretraining."""
        return RunDir(self.root / PRETRAINED)

    @property
    def float_weights(self) -> Path:
        """The float weights that all runs start from."""
        return self.pretrained.checkpoints / "fp32.safetensors"


def shortest_forms(targets: Sequence[str], config: TrainConfig) -> list[str]:
    """Every target without spaces and needless zeros: 1.2ms for ` 1.20 ms`.

    Raises:
        SbsError: there are no targets, one is not valid with these settings, or two are equal.
    """
    if not targets:
        raise SbsError("--targets: name the budgets to sweep over, such as --targets 20x 40x 66x 100x")
    values: dict[tuple[Decimal, str], str] = {}
    for target in targets:
        if target.strip() == "none":
            raise SbsError("--targets none: a sweep needs budgets, such as --targets 20x 40x 66x 100x")
        replace(config, target=target).check()
        match = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", target.strip())
        assert match is not None  # `check` refuses other texts
        number, suffix = Decimal(match[1]), match[2]
        # BOPs are BOPs, whatever they are counted in: 1000M is 1G.
        value = (number * Decimal(SUFFIXES[suffix]), "BOPs") if suffix in SUFFIXES else (number, suffix)
        if value in values:
            raise SbsError(f"--targets: {values[value]} and {target.strip()} are the same target; give each once")
        values[value] = f"{number.normalize():f}{suffix}"
    return list(values.values())


def load_settings(root: Path) -> Settings:
    """Read the settings of a sweep; SbsError if `root` holds no sweep."""
    path = SweepDir(root).settings
    if not path.is_file():
        raise SbsError(f"no sweep at {root}; make one with `sbs-train sweep --out {root}`, or name its directory")
    return read_record(path, Settings, "start a new sweep with --out")


def save_settings(settings: Settings, root: Path) -> None:
    """Write the settings of a sweep atomically."""
    value = {**settings.model_dump(exclude={"config"}, mode="json"), "config": to_dict(settings.config)}
    rundir.write_json(SweepDir(root).settings, value)


def made_from(config: TrainConfig) -> dict[str, str]:
    """Hashes of a run's inputs: its settings, and the content of files that they name."""
    value: dict[str, Any] = to_dict(config)
    files = {name: path for name in ("weights", "cost") if (path := getattr(config, name)) is not None}
    for name in ("out", "weights", "cost"):
        del value[name]
    return {"config": rundir.hash_of(value), **{name: rundir.sha256_of(path) for name, path in files.items()}}


def mark_done(run: RunDir, config: TrainConfig) -> None:
    """Record the inputs and outputs of a finished run beside metrics.json: a resumed sweep then skips the run."""
    rundir.write_manifest(run.metrics, made_from(config), details=_products(run))


def is_done(run: RunDir, config: TrainConfig) -> bool:
    """Whether a run finished with these settings and its files are unchanged."""
    return rundir.is_current(run.metrics, made_from(config)) and (
        rundir.read_manifest(run.metrics).details == _products(run)
    )


def row_of(root: Path, name: str) -> SweepRun:
    """The result of a finished run.

    Raises:
        SbsError: a file of the run is missing or damaged.
    """
    run = RunDir(root / name)
    plan, metrics = load_plan(run.plan), read_record(run.metrics, Metrics, _AGAIN)
    budget, tuned = metrics.budget, metrics.finetune
    if budget.reached is None or budget.reduction is None or tuned is None or tuned.score is None:
        raise SbsError(f"{run.metrics} does not say what the run came to; {_AGAIN}")
    return SweepRun(
        target=name,
        run=name,
        reached=budget.reached,
        reduction=budget.reduction,
        bops=plan.cost.bops,
        expected_ms=budget.expected_ms,
        score=tuned.score,
    )


def float_score(run: RunDir) -> tuple[str, float]:
    """Name and value of the float network's score; SbsError if metrics.json is damaged."""
    fp32 = read_record(run.metrics, Metrics, _AGAIN).fp32
    if fp32 is None or fp32.score_name is None or fp32.score is None:
        raise SbsError(f"{run.metrics} has no score of the float network; {_AGAIN}")
    return fp32.score_name, fp32.score


def _products(run: RunDir) -> dict[str, str]:
    files = (run.plan, run.weights, run.checkpoints / "fp32.safetensors")
    return {path.name: rundir.sha256_of(path) for path in files if path.is_file()}
