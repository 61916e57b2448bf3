"""Records of the JSON files of a run: metrics.json, calibration.json, details of manifests.

Readers take these records, never the bare JSON. A value must have the exact type (true is not 1, "3" is not 3) and lie
in its range. Unknown keys are kept: a newer version may write more.
"""

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sbs_train.contract.target import Unit

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Counts = dict[str, Count]


class Document(BaseModel):
    """Base of records of a run's files: types are exact, unknown keys are kept."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


def first_problem(error: ValidationError) -> str:
    """One line for the first problem pydantic found: the field's path and what is wrong with it."""
    problem: Any = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:80] for part in problem["loc"][:12])
    message = str(problem["msg"]).removeprefix("Value error, ")[:300]
    return f"{where}: {message}" if where else message


class StageMetrics(Document):
    """The task's metrics on the test split after a stage, by name: the score first, larger is better."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics, the score first; empty if the stage was not evaluated."""
        return {n: v for n, v in (self.model_extra or {}).items() if isinstance(v, int | float)}

    @property
    def score_name(self) -> str | None:
        """Name of the score, such as top1; None if the stage was not evaluated."""
        return next(iter(self.metrics), None)

    @property
    def score(self) -> float | None:
        """Value of the score; None if the stage was not evaluated."""
        return next(iter(self.metrics.values()), None)

    @model_validator(mode="after")
    def _check(self) -> "StageMetrics":
        name, value = next(iter((self.model_extra or {}).items()), ("", 0.0))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, the score of the stage")
        return self


class Epoch(Document):
    """One epoch of the search's history; `val_SCORE` is the task's score on the validation split, by its name."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    epoch: Count
    loss: Number | None = None
    lambda_: Annotated[Number | None, Field(alias="lambda")] = None
    reduction: Positive | None = None
    flips: NotNegative | None = None
    val_loss: Number | None = None
    bits_w: Counts = {}
    bits_a: Counts = {}
    kept: Counts = {}
    margins: dict[str, list[Number]] = {}

    @property
    def val_score_name(self) -> str:
        """Name of the score, such as top1; score where the epoch was not validated."""
        return next((name.removeprefix("val_") for name in self._validated()), "score")

    @property
    def val_score(self) -> float | None:
        """The score on the validation split; None where the epoch was not validated."""
        return next(iter(self._validated().values()), None)

    def _validated(self) -> dict[str, float]:
        found = (self.model_extra or {}).items()
        return {name: value for name, value in found if name.startswith("val_") and isinstance(value, int | float)}


class Entrant(Document):
    """A plan that took part in the search's tournament."""

    name: str
    """search for the search's own plan; else how the plan was made, such as "uniform W4A4"."""
    reduction: Positive
    """In the unit of the search's cost."""
    val_loss: Number | None = None
    """With the search's weights, over a part of the validation split; None where it was not finite."""
    val_loss_trained: Number | None = None
    """After the short training, over all of it; None for a plan that was not trained, or whose training diverged."""
    kept: bool = False


class Move(Document):
    """A step away from the kept plan that lowered the validation loss."""

    name: str
    change: Number
    """Mean change of the loss over a part of the validation split."""
    error: NotNegative
    """Standard error of `change`."""


class Tournament(Document):
    """The search's plan against simple plans of no larger cost."""

    measure: str = "loss"
    """What `val_loss` holds: the loss, or the negative score (such as -miou) of a task that gives no loss."""
    entrants: list[Entrant] = []
    moves: list[Move] = []
    """The moves that were kept."""
    moves_tried: Count = 0
    steps: Count = 0
    """Training steps of each plan with a `val_loss_trained`."""
    seconds: NotNegative = 0.0

    @property
    def winner(self) -> str | None:
        """Name of the kept plan; None without a tournament."""
        return next((entrant.name for entrant in self.entrants if entrant.kept), None)


class Search(StageMetrics):
    """Test metrics after the search, the history of its epochs, and its tournament."""

    history: list[Epoch] = []
    tournament: Tournament = Tournament()


class SearchDevice(Document):
    """The device of a search's cost, kept in the run since device.json may change or go.

    `device.DeviceModel` explains the fields.
    """

    target: str
    device: str
    precision: str
    batch: Annotated[int, Field(gt=0, lt=2**63)]
    sha256: str
    """Hash of device.json."""


class Budget(Document):
    """The search's target and the cost it reached."""

    unit: Unit = "BOPs"
    reduction: Positive | None = None
    expected_ms: Positive | None = None
    max_bops: str | None = None
    reached: bool | None = None
    device: SearchDevice | None = None
    """Device of the cost; None where the cost was in BOPs, or the run has no record of the device."""


class Metrics(Document):
    """The content of metrics.json."""

    fp32: StageMetrics | None = None
    search: Search = Search()
    finetune: StageMetrics | None = None
    budget: Budget = Budget()
    seconds: dict[str, NotNegative] = {}


class LayerRange(Document):
    """Clip values that calibration found for a layer."""

    signed: bool
    clips_a: list[Positive] = []
    """Clip values of the input by candidate bitwidth; empty where nothing is quantized."""
    clips_w: list[Positive] = []
    """Clip values of the weights by candidate bitwidth, in standard deviations."""


class OperandRange(Document):
    """Clip value that calibration found for an operand of an addition."""

    signed: bool
    clip: Positive


class Calibration(Document):
    """The content of calibration.json."""

    layers: dict[str, LayerRange]
    adds: list[Annotated[list[OperandRange], Field(min_length=2, max_length=2)]]


class Golden(Document):
    """A legalised graph's answers on the golden samples; those on classes are None for a network without classes."""

    images: Annotated[int, Field(gt=0, lt=2**63)]
    """Number of samples."""
    top1: Percent | None = None
    top1_plan: Percent | None = None
    top1_agreement: Percent | None = None
    top1_exact: Percent | None = None
    """Of the graph with the plan's own grids, where it has others."""
    error: NotNegative | None = None
    """Root mean square error of the output that is furthest off, against that of the plan's graph, relative to it."""


class Legal(Document):
    """What legalising changed in the plan's graph for a backend."""

    float_type: str | None = None
    activations: str = ""
    outputs: str = ""
    depthwise: str = ""
    promoted_layers: Count = 0
    quantized_outputs: Count = 0
    float_depthwise_layers: Count = 0
    float32_layers: list[str] = []
    golden: Golden | None = None


class Batches(Document):
    """Batch sizes of an engine."""

    opt: Annotated[int, Field(gt=0, lt=2**31)] = 1
    max: Annotated[int, Field(gt=0, lt=2**31)] = 1


class Builder(Document):
    """Requested settings of a TensorRT build."""

    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_mib: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    refit: bool = False


class BuiltOn(Document):
    """The machine that an engine was built on."""

    gpu: str | None = None
    compute_capability: str | None = None


class Details(Legal):
    """The details of a manifest: of weights, of legalised graphs, of engines."""

    plan: str = ""
    precision: str = ""
    backend: str = ""
    legal: Legal = Legal()
    build_seconds: NotNegative = 0.0
    max_abs_diff_to_source: NotNegative | None = None
    quantized_layers: Count = 0
    float_layers: list[str] | None = None
    exact_products: list[str] = []
    saturating_layers: list[str] = []
    profile: Batches = Batches()
    settings: Builder = Builder()
    compute_capabilities: list[str] | None = None
    hardware: BuiltOn = BuiltOn()
    processor: str = ""
    gpu: str = ""
    device: str = ""
    device_name: str = ""
    providers: list[str] = []
    flags: list[str] = []
    shapes: dict[str, list[int | str]] = {}
    """Shapes of inputs and outputs, by name; the name of an axis of open size, or -1 in older manifests."""
    axes: dict[str, Annotated[list[Annotated[int, Field(gt=0, lt=2**31)]], Field(min_length=3, max_length=3)]] = {}
    """Least, usual and largest size of axes of open size, by name."""
