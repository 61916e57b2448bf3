"""Records of a placement: which layers of an engine stay in float, and the times that decided."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sbs_train.contract.records import Count, Details, Document, NotNegative, Percent, Positive

MINUTES = 2.0
"""Default limit of a measurement."""
ASKED = "asked for"
"""Why nothing was measured: the user asked for the plan."""


class FloatLayer(Document):
    """A planned layer that stays in float, with its times by the profiler; None where the backend has no profiler."""

    layer: str
    int8_ms: NotNegative | None = None
    """Milliseconds of the layer and of what follows it, up to the next layer, as planned."""
    float_ms: NotNegative | None = None
    """The same in the pruned float network."""


class TimedGraph(Document):
    """A graph of the plan that was timed as a whole."""

    form: str
    """Options of the graph that differ from the plan's."""
    float_layers: Count
    ms: Positive
    speed: Positive
    """How many times as fast as the plan's graph, in the same rounds."""
    accurate: bool = True
    """False for a graph that was faster and answers worse."""


class AgainstControl(Document):
    """The chosen graph against a float control, in the same rounds."""

    control: str
    """fp32 dense, fp32 slim, fp16 slim, ..."""
    ms: Positive
    speed: Positive
    """How many times as fast as the control the chosen graph is."""
    interval: Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
    """95 percent confidence interval of `speed`."""


class Placement(Document):
    """How the precisions of an engine's layers were chosen."""

    mode: Literal["measured", "plan"]
    why: str = ""
    """Why nothing was measured."""
    minutes: NotNegative = 0.0
    """Limit of the measurement."""
    threads: Count = 1
    batch: Count = 1
    free: list[str] = Field(default_factory=list)
    """Options of the plan's graph that could be chosen."""
    clock: Literal["process", "device", ""] = ""
    """process: CPU time of the process, for engines with one thread on a CPU; device: the engine's own clock."""
    form: str = ""
    """Options of the chosen graph that differ from the plan's; empty for the plan's."""
    ms: NotNegative = 0.0
    """Milliseconds of the chosen graph."""
    finished: bool = True
    """False if the minutes ended before every promising change was tried."""
    float_layers: list[FloatLayer] = Field(default_factory=list)
    quantized_layers: Count = 0
    """Number of layers that the plan quantizes."""
    timed: list[TimedGraph] = Field(default_factory=list)
    controls: list[AgainstControl] = Field(default_factory=list)
    ship: str | None = None
    """Label of the float control that is faster and should be shipped in place of the engine; None if there is none."""


class EngineDetails(Details):
    """The details of a manifest, an engine's placement among them."""

    placement: Placement | None = None


class Answers(Document):
    """Answers of an engine on golden samples."""

    seconds: NotNegative = 0.0
    """Time that the measurement took."""
    top1: Percent | None = None
    """None for a network without classes."""
    agreement: Percent | None = None
    """Percent of the samples with the plan's class, or of the integers of an output that are the plan's; None where all
    outputs are floats without classes."""
    noise: NotNegative | None = None
    """Root mean square distance of an output to that without rounded activations, over that of the plan's output, where
    this is largest; None where these are not known."""


class RaceTimes(Document):
    """Times of graphs that took turns."""

    seconds: NotNegative = 0.0
    rounds_ms: dict[str, Annotated[list[Positive], Field(min_length=1)]]
    """First quartile of the milliseconds of each round, by contestant; all were in the same rounds."""

    @model_validator(mode="after")
    def _check(self) -> "RaceTimes":
        if len({len(rounds) for rounds in self.rounds_ms.values()}) > 1:
            raise ValueError("rounds_ms must have the same number of rounds for every contestant")
        return self


class StepTimes(Document):
    """A graph's profile."""

    seconds: NotNegative = 0.0
    ms: dict[str, NotNegative]
    """Milliseconds by layer, with what follows the layer; empty where the backend has no profiler."""


class Trials(Document):
    """Everything that was measured for one placement, so that the next build does not measure again."""

    races: dict[str, RaceTimes] = Field(default_factory=dict)
    profiles: dict[str, StepTimes] = Field(default_factory=dict)
    answers: dict[str, Answers] = Field(default_factory=dict)
