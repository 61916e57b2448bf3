"""What deployment checks of a run: validation.json."""

from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from sbs_train.contract import rundir
from sbs_train.contract.documents import read_existing
from sbs_train.contract.records import Count, Document, Golden, NotNegative, Percent
from sbs_train.contract.rundir import RunDir

Names = tuple[str, ...]


class Classes(Document):
    """Classes that one execution chose, against those of a reference."""

    top1: Percent
    top1_agreement: Percent
    """Percent of samples with the reference's top-1 class."""
    disagreeing: Count
    """Samples with another class than the reference's, the undecided ones left out."""
    undecided: Count
    """Samples with another class where the reference's own rounding could have changed it too."""
    top1_change: float
    """Percentage points against the reference's top-1, the undecided samples left out."""


class Compared(Document):
    """One output of an execution against a reference, PyTorch's unless something else is said; None is infinite."""

    samples: Count
    classes: Classes | None = None
    """None where the samples have no labels, or the network not one output (N, classes)."""
    values: Count | None = None
    """Number of values of an output of integers or booleans; None for floats."""
    max_abs_diff: NotNegative | None
    """Largest difference; None where a value is not a number."""
    error: NotNegative | None
    """Of floats the median over samples of the difference to the exact output: root mean square, relative to that of
    the output. Of integers the part of the values that differ."""
    rounding: NotNegative | None
    """The reference's own error: of floats on a sample that is far off (one in ten is worse)."""


def _by_output(value: Any) -> Any:
    """What an older file says of its only output, by that output's name."""
    old = isinstance(value, dict) and isinstance(value.get("images"), int)
    return {"logits": {**value, "samples": value["images"], "classes": value}} if old else value


def _number_by_output(value: Any) -> Any:
    return value if isinstance(value, dict) else {"logits": value}


def _numbers_by_output(value: Any) -> Any:
    return {name: _number_by_output(one) for name, one in value.items()} if isinstance(value, dict) else value


ByOutput = Annotated[dict[str, Compared], BeforeValidator(_by_output)]
"""Results by output."""
Samples = Annotated[Count | None, Field(validation_alias=AliasChoices("samples", "images"))]


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
    against_reference: ByOutput | None = None
    """What the gate judges."""
    against_pytorch: ByOutput | None = None
    """None for controls, which compute another network. A legalised graph may differ from PyTorch by itself."""


class Identity(Document):
    """Check of the graphs without their quantizers against the float network."""

    samples: Samples = None
    error: Annotated[dict[str, dict[str, NotNegative | None]], BeforeValidator(_numbers_by_output)]
    """By graph and output: the largest difference to the float network in float64, relative to the root mean square of
    the output, or of integers the part of the values that differ; None where it is infinite."""
    limit: Annotated[dict[str, NotNegative], BeforeValidator(_number_by_output)]
    """The error that rounding explains, by output."""
    quantizers_equal: bool
    """Whether every quantizer of both dialects is the plan's."""
    first_divergence: str | None = None
    """The first layer whose quantizer is not the plan's, or whose float result differs."""


class Validation(Document):
    """The content of validation.json; the headline figures are the worst of the dialects and outputs, those on classes
    None for a network without classes."""

    passed: bool
    samples: Samples = None
    codes_equal: bool | None = None
    max_abs_diff: NotNegative | None = None
    top1_agreement: Percent | None = None
    undecided: Count | None = None
    agreement_integer: Percent | None = None
    top1_pytorch: Percent | None = None
    top1_float_qdq: Percent | None = None
    top1_integer: Percent | None = None
    first_divergence: str | None = None
    float_qdq: Annotated[dict[str, ByOutput], Field(default_factory=dict)]
    """The Q/DQ graph computed in float, by dialect and output."""
    integer: ByOutput | None = None
    """The Q/DQ graph computed by integer kernels, by output."""
    identity: Identity | None = None
    failures: Names = ()
    engines: tuple[CheckedEngine, ...] = ()
    graphs: Annotated[dict[str, Golden], Field(default_factory=dict)]
    """Answers of the graphs that differ from the plan's for a backend, by file; they are no gate."""


def read_validation(run: RunDir) -> Validation | None:
    """Read validation.json; None if the file is missing, SbsError if it is damaged."""
    return read_existing(run.validation, Validation, f"sbs-deploy validate {run.root}")


def write_validation(found: Validation, run: RunDir) -> None:
    """Write validation.json atomically."""
    rundir.write_json(run.validation, found.model_dump(mode="json"))
