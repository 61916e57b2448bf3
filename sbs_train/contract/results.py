"""What deployment measures of a run: bench.json; and the settings of config.json that the report reads."""

from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Tag, model_validator

from sbs_train.contract import rundir
from sbs_train.contract.documents import read_existing
from sbs_train.contract.records import Count, Document, NotNegative, Positive
from sbs_train.contract.rundir import RunDir

Names = tuple[str, ...]


class SearchSettings(Document):
    """The search settings of config.json that deployment reads."""

    metric: str = "loss"


class Config(Document):
    """The settings of config.json that the report reads."""

    target: str | None = None
    cost: str | None = None
    data: str | None = None
    task: str = "classification"
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
    layers_in_integers: Count | None = None
    """Number of the plan's quantized layers that the engine computes in integers; None where no manifest says so."""
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
    cpu_p50_ms: NotNegative | None = None
    """Median CPU milliseconds, which other processes do not stretch; None on another device or with several threads."""
    quickest_ms: Positive | None = None
    """First quartile of the quickest round, in CPU milliseconds where they are known."""
    iterations: Count | None = None
    enqueue_p50_ms: NotNegative | None = None
    """Median milliseconds that the host took to hand an inference to a GPU."""
    speedup_vs_fp32: Positive | None
    """Speed-up over FP32 on the same device in the same rounds, by CPU time where both have it; None where no FP32
    engine ran there, or rounds disagree (then there is an interval)."""
    speedup_interval: tuple[Positive, Positive] | None = None
    speedup_over: str | None = None
    """The FP32 artifact of `speedup_vs_fp32`."""
    layers: tuple[LayerTime, ...] | None = None
    layers_error: str | None = None
    """Why layer times are missing."""

    def faster_than(self, control: "TimedRow") -> float:
        """How many times faster than another row of the same rounds: by the quickest rounds, else the medians."""
        if self.quickest_ms and control.quickest_ms and (self.cpu_p50_ms is None) == (control.cpu_p50_ms is None):
            return control.quickest_ms / self.quickest_ms
        return control.latency_p50_ms / self.latency_p50_ms


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


def read_config(run: RunDir) -> Config:
    """Read the settings of config.json that the report needs; SbsError if the file is damaged."""
    return read_existing(run.config, Config, f"sbs-train --resume --out {run.root}") or Config()


def read_bench(run: RunDir) -> BenchFile | None:
    """Read bench.json; None if the file is missing, SbsError if it is damaged."""
    return read_existing(run.bench, BenchFile, f"sbs-deploy bench {run.root}")


def write_bench(bench: BenchFile, run: RunDir) -> None:
    """Write bench.json atomically."""
    rundir.write_json(run.bench, bench.model_dump(mode="json") | {"rows": [row_json(row) for row in bench.rows]})


def row_json(row: Row) -> dict[str, Any]:
    """A row of bench.json as JSON: all rows have equal keys, with null where no measurement exists."""
    return dict.fromkeys(TimedRow.model_fields) | row.model_dump(mode="json")
