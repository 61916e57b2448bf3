"""The JSON files of a run that deployment reads and writes: bench.json, validation.json, parts of config.json."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import read_record
from sbs_train.contract.records import Count, Document, Metrics, NotNegative, Percent, Positive
from sbs_train.contract.rundir import RunDir

Names = tuple[str, ...]
Form = TypeVar("Form", bound=Document)


class SearchSettings(Document):
    """The search settings of config.json that deployment reads."""

    metric: str = "loss"


class Config(Document):
    """The settings of config.json that the report reads."""

    target: str | None = None
    cost: str | None = None
    data: str | None = None
    seed: int | None = None
    search: SearchSettings = SearchSettings()


class LayerTime(Document):
    """Time of one layer of the plan, or of one category of everything else."""

    layer: str | None
    """The layer; for requantization the layer of the requantized input or weights, if the engine names it."""
    category: str
    """layer, reformat, requantization, elementwise, pooling or other."""
    ms: NotNegative
    share: NotNegative
    """Part (0 to 1) of the summed time of all nodes."""
    nodes: Names
    """Names of the engine's nodes."""
    fused: Names = ()
    """Other layers of the plan that these nodes execute; the time includes them."""


class Row(Document):
    """One artifact in one backend at one batch size: a `TimedRow`, or the reason why there is no time."""

    artifact: str
    """The artifact's file, relative to the run."""
    sha256: str | None = None
    label: str
    backend: str
    device: str | None
    precision: str
    control: bool = False
    batch: Count
    threads: Count | None
    settings: dict[str, Any] | None = None
    """How the engine runs, in the backend's words."""
    builds: Count = 1
    builds_p50_ms: tuple[Positive, ...] = ()
    predicted_bops: Positive
    warnings: Names
    error: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "Row":
        if PurePosixPath(self.artifact).is_absolute() or ".." in PurePosixPath(self.artifact).parts:
            raise ValueError("artifact must lie in the run")
        return self


class TimedRow(Row):
    """A measured row. Latencies are milliseconds of one batch."""

    error: None = None
    latency_p50_ms: Positive
    latency_p50_interval_ms: tuple[NotNegative, NotNegative] | None = None
    images_per_second: Positive | None = None
    p90: NotNegative
    p99: NotNegative
    cov: NotNegative
    """Standard deviation over mean of all iterations."""
    iterations: Count | None = None
    enqueue_p50_ms: NotNegative | None = None
    """Median milliseconds that the host took to hand an inference to a GPU."""
    speedup_vs_fp32: Positive | None
    """Speed-up over FP32 on the same device in the same rounds; None where no FP32 engine ran there."""
    speedup_interval: tuple[Positive, Positive] | None = None
    speedup_over: str | None = None
    """The FP32 artifact of `speedup_vs_fp32`."""
    layers: tuple[LayerTime, ...] | None = None
    layers_error: str | None = None
    """Why layer times are missing."""


def _kind(row: Any) -> str:
    error = row.get("error") if isinstance(row, dict) else getattr(row, "error", None)
    return "measured" if error is None else "failed"


AnyRow = Annotated[Annotated[TimedRow, Tag("measured")] | Annotated[Row, Tag("failed")], Discriminator(_kind)]


class Gpu(Document):
    """State of a GPU at one moment; None where the driver gives no value."""

    name: str
    driver: str | None = None
    sm_clock_mhz: NotNegative | None = None
    sm_clock_max_mhz: NotNegative | None = None
    memory_clock_mhz: NotNegative | None = None
    memory_clock_max_mhz: NotNegative | None = None
    power_draw_w: NotNegative | None = None
    power_limit_w: NotNegative | None = None
    temperature_c: float | None = None
    throttle_reasons: Names | None = None
    """Why the GPU's clocks are below their highest."""


class JetsonClocks(Document):
    """Clocks of a Jetson; each of GPU and memory has min, max and current."""

    pinned: bool
    """Whether the least clock is the highest, of the GPU and of every core."""
    gpu_mhz: dict[str, int] | None
    memory_mhz: dict[str, int] | None


class Jetson(Document):
    """State of a Jetson at one moment; None where its tools give no value."""

    power_mode: str | None = None
    power_mode_id: int | None = None
    power_mode_max: str | None = None
    power_mode_max_id: int | None = None
    clocks: JetsonClocks | None = None
    tegrastats: dict[str, Any] | None = None


class Machine(Document):
    """State of a machine at one moment; None where the system gives no value."""

    cpu: str | None = None
    cores: Count | None = None
    usable_cores: Count | None = None
    """Cores that the process may run on."""
    cpu_mhz: NotNegative | None = None
    """Clock of the first core in MHz."""
    vector_flags: Names = ()
    governor: str | None = None
    load_average_1min: NotNegative | None = None
    os: str | None = None
    python: str | None = None
    gpu: Gpu | None = None
    jetson: Jetson | None = None


class Machines(Document):
    """The machine before and after the measurement."""

    before: Machine = Machine()
    after: Machine = Machine()


class BenchProtocol(Document):
    """How latencies were measured; other settings of `measure.protocol.Protocol` are kept unchecked."""

    model_config = ConfigDict(extra="allow")

    rounds: Count | None = None
    batches: tuple[Count, ...] = (1,)


class BenchFile(Document):
    """The content of bench.json."""

    schema_version: Count = 1
    created: str | None = None
    """Time of the measurement (ISO 8601)."""
    machine: Machines = Machines()
    protocol: BenchProtocol = BenchProtocol()
    plan_sha256: str | None = None
    rows: tuple[AnyRow, ...] = ()
    verdicts: Names = ()


class Compared(Document):
    """Logits of one execution against a reference, PyTorch's unless something else is said; None is infinite."""

    images: Count
    top1: Percent
    top1_agreement: Percent
    """Percent of images with the reference's top-1 class."""
    disagreeing: Count
    """Images with another class than the reference's, the undecided ones left out."""
    undecided: Count
    """Images with another class where the reference's own rounding could have changed it too."""
    top1_change: float
    """Percentage points against the reference's top-1, the undecided images left out."""
    max_abs_diff: NotNegative | None
    """Largest |Δlogit|; None where a logit is not a number."""
    error: NotNegative | None
    """Median over images of |Δlogit| against the exact answers: root mean square, relative to that of the answers."""
    rounding: NotNegative | None
    """The reference's own |Δlogit| on an image that is far off: one in ten is worse."""


class CheckedEngine(Document):
    """Check of one engine that was built for a GPU."""

    engine: str
    precision: str | None = None
    device: str | None = None
    passed: bool | None
    """Whether the engine passed; None if it was not checked."""
    note: str | None = None
    """Why it was not checked, did not run, or no layer is named."""
    reference: str | None = None
    """The graph it was built from."""
    first_divergence: str | None = None
    """The first layer that differs where the gate failed."""
    against_reference: Compared | None = None
    """What the gate judges."""
    against_pytorch: Compared | None = None
    """None for controls, which compute another network. A legalised graph may differ from PyTorch by itself."""


class Identity(Document):
    """Check of the graphs without their quantizers against the float network."""

    images: Count | None = None
    error: dict[str, NotNegative | None]
    """Largest |Δlogit| of each graph against the float network in float64, relative to the root mean square of its
    logits; None where it is infinite."""
    limit: NotNegative
    """The error that rounding explains."""
    quantizers_equal: bool
    """Whether every quantizer of both dialects is the plan's."""
    first_divergence: str | None = None
    """The first layer whose quantizer is not the plan's, or whose float result differs."""


class Validation(Document):
    """The content of validation.json; the headline figures are the worst of the dialects."""

    passed: bool
    images: Count | None = None
    codes_equal: bool | None = None
    max_abs_diff: NotNegative | None = None
    top1_agreement: Percent | None = None
    undecided: Count | None = None
    agreement_integer: Percent | None = None
    top1_pytorch: Percent | None = None
    top1_float_qdq: Percent | None = None
    top1_integer: Percent | None = None
    first_divergence: str | None = None
    float_qdq: Annotated[dict[str, Compared], Field(default_factory=dict)]
    """The Q/DQ graph computed in float, by dialect."""
    integer: Compared | None = None
    """The Q/DQ graph computed by integer kernels."""
    identity: Identity | None = None
    failures: Names = ()
    engines: tuple[CheckedEngine, ...] = ()


def read_config(run: RunDir) -> Config:
    """Read the settings of config.json that the report needs; SbsError if the file is damaged."""
    return _read(run.config, Config, f"sbs-train --resume --out {run.root}") or Config()


def read_metrics(run: RunDir) -> Metrics:
    """Read metrics.json; empty if the file is missing, SbsError if it is damaged."""
    return _read(run.metrics, Metrics, f"sbs-train --resume --out {run.root}") or Metrics()


def read_validation(run: RunDir) -> Validation | None:
    """Read validation.json; None if the file is missing, SbsError if it is damaged."""
    return _read(run.validation, Validation, f"sbs-deploy validate {run.root}")


def write_validation(found: Validation, run: RunDir) -> None:
    """Write validation.json atomically."""
    rundir.write_json(run.validation, found.model_dump(mode="json"))


def read_bench(run: RunDir) -> BenchFile | None:
    """Read bench.json; None if the file is missing, SbsError if it is damaged."""
    return _read(run.bench, BenchFile, f"sbs-deploy bench {run.root}")


def write_bench(bench: BenchFile, run: RunDir) -> None:
    """Write bench.json atomically."""
    rundir.write_json(run.bench, bench.model_dump(mode="json") | {"rows": [row_json(row) for row in bench.rows]})


def row_json(row: Row) -> dict[str, Any]:
    """A row of bench.json as JSON: all rows have equal keys, with null where no measurement exists."""
    return dict.fromkeys(TimedRow.model_fields) | row.model_dump(mode="json")


def _read(path: Path, form: type[Form], made_by: str) -> Form | None:
    return read_record(path, form, f"delete it, and make it again with `{made_by}`") if path.is_file() else None
