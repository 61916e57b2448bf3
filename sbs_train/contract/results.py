"""What the report reads of the JSON files of a run, checked where it is read; what it does not read may be anything."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import checked
from sbs_train.contract.records import Count, Document, NotNegative, Percent, Positive

Names = tuple[str, ...]


class SearchSettings(Document):
    """Of config.json."""

    metric: str = "loss"


class Config(Document):
    """config.json."""

    target: str | None = None
    cost: str | None = None
    data: str | None = None
    seed: int | None = None
    search: SearchSettings = SearchSettings()


class TimedLayer(Document):
    """Time of a layer, or of a category of what lies between layers."""

    layer: str | None
    category: str
    ms: NotNegative
    fused: Names = ()


class Row(Document):
    """A measurement, or why there is none."""

    artifact: str
    label: str
    backend: str
    precision: str
    batch: Count
    threads: Count | None
    device: str | None
    error: str | None
    predicted_bops: Positive
    latency_p50_ms: Positive | None
    p90: NotNegative | None
    p99: NotNegative | None
    cov: NotNegative | None
    speedup_vs_fp32: Positive | None
    speedup_interval: Annotated[list[Positive] | None, Field(min_length=2, max_length=2)] = None
    layers: list[TimedLayer] | None = None
    layers_error: str | None = None
    warnings: list[str]

    @model_validator(mode="after")
    def _check(self) -> "Row":
        if PurePosixPath(self.artifact).is_absolute() or ".." in PurePosixPath(self.artifact).parts:
            raise ValueError("artifact must lie in the run")
        if self.error is None and None in (self.latency_p50_ms, self.p90, self.p99, self.cov):
            raise ValueError(f"{self.artifact} has neither a latency nor an error")
        return self


class Gpu(Document):
    """The GPU of a machine."""

    name: str


class Machine(Document):
    """What was measured on."""

    gpu: Gpu | None = None
    vector_flags: Names = ()


class Machines(Document):
    """Before and after."""

    before: Machine = Machine()


class Bench(Document):
    """bench.json."""

    rows: tuple[Row, ...] = ()
    verdicts: Names = ()
    machine: Machines = Machines()
    protocol: Annotated[dict[str, Any], Field(default_factory=dict)]


class CheckedEngine(Document):
    """One engine that was built for a GPU."""

    engine: str
    passed: bool | None
    device: str | None = None
    note: str | None = None
    first_divergence: str | None = None


class Identity(Document):
    """The graphs without their quantizers."""

    error: dict[str, NotNegative | None]
    limit: NotNegative
    quantizers_equal: bool


class Validation(Document):
    """validation.json."""

    passed: bool
    top1_integer: Percent | None = None
    identity: Identity | None = None
    failures: Names = ()
    engines: tuple[CheckedEngine, ...] = ()


def read_document(path: Path, form: type[Document], made_by: str) -> dict[str, Any]:
    """A JSON file of that form as it is; empty where there is none, SbsError where it is damaged."""
    if not path.is_file():
        return {}
    remedy = f"delete it, and make it again with `{made_by}`"
    value: dict[str, Any] = rundir.read_json(path, remedy=remedy)
    checked(path, value, form, remedy)
    return value
