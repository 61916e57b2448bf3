"""sweep.json: what the runs of `sbs-train sweep` came to."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.schema import Clip, Strict
from sbs_train.contract.target import Unit

Percent = Annotated[float, Field(ge=0, le=100)]


class SweepRun(Strict):
    """One target."""

    target: str
    run: str
    """Its run directory, relative to the sweep's."""
    error: str | None = None
    """Why there is no network; everything below is then null or false."""
    reached: bool = False
    """Whether the plan fits the target."""
    reduction: Clip | None = None
    """How many times cheaper than dense FP32, in the sweep's unit."""
    bops: Clip | None = None
    """Bit-Operations for one image."""
    expected_ms: Clip | None = None
    """On the device of `--cost`; null without one."""
    top1: Percent | None = None
    """Test accuracy of the fine-tuned network."""
    on_front: bool = False
    """Whether no other run is as good for less cost: expected_ms where there is one, else bops."""
    knee: bool = False
    """Whether this is where the front bends; true for one run at most."""

    @property
    def cost(self) -> float | None:
        """What the front is drawn over."""
        return self.expected_ms or self.bops


class SweepResult(Strict):
    """The whole file."""

    schema_version: Literal[1] = 1
    model: str
    data: str
    unit: Unit
    """What the targets are in."""
    top1_fp32: Percent
    """Test accuracy of the float network that all runs started from."""
    runs: list[SweepRun]

    @model_validator(mode="after")
    def _check(self) -> "SweepResult":
        for row in self.runs:
            if (row.error is None) != (row.top1 is not None and row.cost is not None and row.reduction is not None):
                raise ValueError(f"run {row.run} must have either an error or a reduction, bops and top1")
        if len({row.run for row in self.runs}) < len(self.runs):
            raise ValueError("two runs share a directory")
        if sum(row.knee for row in self.runs) > 1:
            raise ValueError("more than one run is the knee")
        return self


def save_sweep(sweep: SweepResult, path: Path) -> None:
    """Write sweep.json atomically."""
    rundir.write_json(path, sweep.model_dump())
