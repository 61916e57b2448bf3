"""What the report reads of the JSON files of a run, checked where it is read; what it does not read may be anything."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import first_problem
from sbs_train.contract.errors import SbsError

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Counts = dict[str, Count]


class Document(BaseModel):
    """Keys that are not named here are left alone; values are of the very type."""

    model_config = ConfigDict(extra="allow", strict=True)


class Stage(Document):
    """Accuracy after a stage."""

    top1: Number | None = None


class Epoch(Document):
    """A row of the search's history: `report/history.py`."""

    epoch: Count
    loss: Number | None = None
    lambda_: Annotated[Number | None, Field(alias="lambda")] = None
    reduction: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    flips: Number | None = None
    val_top1: Number | None = None
    bits_w: Counts = {}
    bits_a: Counts = {}
    kept: Counts = {}
    margins: dict[str, list[Number]] = {}


class Search(Stage):
    """The search, and its epochs."""

    history: list[Epoch] = []


class Budget(Document):
    """What the search was to reach, and did."""

    unit: str = "BOPs"
    reduction: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    expected_ms: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    max_bops: str | None = None
    reached: bool | None = None


class Metrics(Document):
    """metrics.json."""

    fp32: Stage | None = None
    search: Search = Search()
    finetune: Stage | None = None
    budget: Budget = Budget()
    seconds: dict[str, Number] = {}


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
    ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    fused: list[str] = []


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
    predicted_bops: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    latency_p50_ms: Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
    p90: Number | None
    p99: Number | None
    cov: Number | None
    speedup_vs_fp32: Annotated[float | None, Field(gt=0, allow_inf_nan=False)]
    speedup_interval: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None, Field(min_length=2, max_length=2)
    ] = None
    layers: list[TimedLayer] | None = None
    layers_error: str | None = None
    warnings: list[str]

    @model_validator(mode="after")
    def _check(self) -> "Row":
        if self.error is None and None in (self.latency_p50_ms, self.p90, self.p99, self.cov):
            raise ValueError(f"{self.artifact} has neither a latency nor an error")
        return self


class Gpu(Document):
    """The GPU of a machine."""

    name: str


class Machine(Document):
    """What was measured on."""

    gpu: Gpu | None = None
    vector_flags: list[str] = []


class Machines(Document):
    """Before and after."""

    before: Machine = Machine()


class Bench(Document):
    """bench.json."""

    rows: list[Row] = []
    verdicts: list[str] = []
    machine: Machines = Machines()
    protocol: dict[str, Any] = {}


class CheckedEngine(Document):
    """One engine that was built for a GPU."""

    engine: str
    passed: bool | None
    device: str | None = None
    note: str | None = None
    first_divergence: str | None = None


class Validation(Document):
    """validation.json."""

    top1_integer: Number | None = None
    engines: list[CheckedEngine] = []


def read_document(path: Path, form: type[Document], made_by: str) -> dict[str, Any]:
    """A JSON file of that form as it is; empty where there is none, SbsError where it is damaged."""
    if not path.is_file():
        return {}
    value = rundir.read_json(path)
    try:
        form.model_validate(value)
    except ValidationError as error:
        raise SbsError(f"{path} is damaged ({first_problem(error)}); make it again with `{made_by}`") from error
    result: dict[str, Any] = value
    return result
