"""Records of the JSON files of a run: metrics.json, calibration.json, details of manifests.

Readers take these records, never the bare JSON. A value must have the exact type (true is not 1, "3" is not 3) and lie
in its range. Unknown keys are kept: a newer version may write more.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """Test accuracy after a stage."""

    top1: Percent | None = None


class Epoch(Document):
    """One epoch of the search's history."""

    epoch: Count
    loss: Number | None = None
    lambda_: Annotated[Number | None, Field(alias="lambda")] = None
    reduction: Positive | None = None
    flips: NotNegative | None = None
    val_top1: Percent | None = None
    val_loss: Number | None = None
    bits_w: Counts = {}
    bits_a: Counts = {}
    kept: Counts = {}
    margins: dict[str, list[Number]] = {}


class Search(StageMetrics):
    """Test accuracy after the search, and the history of its epochs."""

    history: list[Epoch] = []


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
    """Accuracy of a legalised graph's answers on the golden images."""

    images: Annotated[int, Field(gt=0, lt=2**63)]
    top1: Percent
    top1_plan: Percent
    top1_agreement: Percent
    top1_exact: Percent = 0.0


class Legal(Document):
    """What legalising changed in the plan's graph for a backend."""

    float_type: str | None = None
    activations: str = ""
    depthwise: str = ""
    promoted_layers: Count = 0
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
    integer_convolutions: Count | None = None
    fusable_convolutions: Count | None = None
    quantized_convolutions: Count | None = None
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
    shapes: dict[str, list[int]] = {}
