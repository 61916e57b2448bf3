"""The directory of a sweep: its settings, a run directory for every target, and what they came to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, to_dict
from sbs_train.contract.documents import first_problem
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.schema import Strict
from sbs_train.contract.sweep import SweepRun

PRETRAINED = "pretrained"


class Settings(Strict):
    """settings.json: what a resumed sweep goes on with."""

    schema_version: Literal[1] = 1
    targets: tuple[str, ...]
    config: TrainConfig
    """Of every run, but for its target and weights."""


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
        """A run of the first stage alone."""
        return RunDir(self.root / PRETRAINED)

    @property
    def float_weights(self) -> Path:
        """What all runs start from."""
        return self.pretrained.checkpoints / "fp32.safetensors"


def load_settings(root: Path) -> Settings:
    """The settings of a sweep; SbsError if `root` holds none."""
    path = SweepDir(root).settings
    if not path.is_file():
        raise SbsError(f"no sweep at {root}; make one with `sbs-train sweep --out {root}`, or name its directory")
    try:
        return Settings.model_validate(rundir.read_json(path))
    except ValidationError as error:
        raise SbsError(f"{path}: {first_problem(error)}; start a new sweep with --out") from error


def save_settings(settings: Settings, root: Path) -> None:
    """Write them atomically."""
    value = {**settings.model_dump(exclude={"config"}, mode="json"), "config": to_dict(settings.config)}
    rundir.write_json(SweepDir(root).settings, value)


def made_from(config: TrainConfig) -> dict[str, str]:
    """What a run depends on: its settings, and the files they name by their content."""
    value: dict[str, Any] = to_dict(config)
    files = {name: path for name in ("weights", "cost") if (path := getattr(config, name)) is not None}
    for name in ("out", "weights", "cost"):
        del value[name]
    return {"config": rundir.hash_of(value), **{name: rundir.sha256_of(path) for name, path in files.items()}}


def mark_done(run: RunDir, config: TrainConfig) -> None:
    """Note beside metrics.json what a finished run was made from and what it left: a resumed sweep skips it."""
    rundir.write_manifest(run.metrics, made_from(config), details=_products(run))


def is_done(run: RunDir, config: TrainConfig) -> bool:
    """Whether a run was finished with these settings and nothing of it has changed since."""
    return rundir.is_current(run.metrics, made_from(config)) and (
        rundir.read_manifest(run.metrics).details == _products(run)
    )


def row_of(root: Path, name: str) -> SweepRun:
    """What a finished run came to.

    Raises:
        SbsError: a file of it is missing or damaged.
    """
    run = RunDir(root / name)
    plan, metrics = load_plan(run.plan), rundir.read_json(run.metrics)
    budget = metrics["budget"]
    return SweepRun(
        target=name,
        run=name,
        reached=budget["reached"],
        reduction=budget["reduction"],
        bops=plan.cost.bops,
        expected_ms=budget.get("expected_ms"),
        top1=metrics["finetune"]["top1"],
    )


def _products(run: RunDir) -> dict[str, str]:
    files = (run.plan, run.weights, run.checkpoints / "fp32.safetensors")
    return {path.name: rundir.sha256_of(path) for path in files if path.is_file()}
