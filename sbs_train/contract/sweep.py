"""sweep.json: results of the runs of `sbs-train sweep`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.schema import Clip, Strict
from sbs_train.contract.target import Unit

Score = Annotated[float, Field(allow_inf_nan=False)]


class SweepRun(Strict):
    """Result of the run for one target."""

    target: str
    run: str
    """Run directory, relative to the directory of the sweep."""
    error: str | None = None
    """Why the run failed; the fields below are then null or false."""
    reached: bool = False
    """Whether the plan fits the target."""
    reduction: Clip | None = None
    """Cost of dense FP32 over cost of the plan, in the sweep's unit."""
    bops: Clip | None = None
    """Bit-Operations for one sample."""
    expected_ms: Clip | None = None
    """Predicted milliseconds on the device of `--cost`; null without a device."""
    score: Score | None = None
    """The task's score of the fine-tuned network on the test split."""
    on_front: bool = False
    """Whether the run is on the Pareto front of the score against `cost`."""
    knee: bool = False
    """Whether the run is the knee of the front; true for one run at most."""

    @property
    def cost(self) -> float | None:
        """Cost axis of the front: `expected_ms` if known, else `bops`."""
        return self.expected_ms or self.bops


class SweepResult(Strict):
    """The content of sweep.json."""

    schema_version: Literal[2] = 2
    model: str
    data: str
    unit: Unit
    """Unit of the targets: BOPs or ms."""
    score_name: str
    """Name of the score, such as top1; larger is better."""
    score_fp32: Score
    """Score of the float network that all runs start from, on the test split."""
    runs: list[SweepRun]

    @model_validator(mode="after")
    def _check(self) -> "SweepResult":
        for row in self.runs:
            if (row.error is None) != (row.score is not None and row.cost is not None and row.reduction is not None):
                raise ValueError(f"run {row.run} must have either an error or a reduction, bops and score")
        if len({row.run for row in self.runs}) < len(self.runs):
            raise ValueError("two runs share a directory")
        if sum(row.knee for row in self.runs) > 1:
            raise ValueError("more than one run is the knee")
        return self


def save_sweep(sweep: SweepResult, path: Path) -> None:
    """Write sweep.json atomically."""
    rundir.write_json(path, sweep.model_dump())
