"""What deployment checks of a run: validation.json."""

from typing import Annotated

from pydantic import Field

from sbs_train.contract import rundir
from sbs_train.contract.documents import read_existing
from sbs_train.contract.records import Count, Document, Golden, NotNegative, Percent
from sbs_train.contract.rundir import RunDir

Names = tuple[str, ...]


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
    graphs: Annotated[dict[str, Golden], Field(default_factory=dict)]
    """Answers of the graphs that differ from the plan's for a backend, by file; they are no gate."""


def read_validation(run: RunDir) -> Validation | None:
    """Read validation.json; None if the file is missing, SbsError if it is damaged."""
    return read_existing(run.validation, Validation, f"sbs-deploy validate {run.root}")


def write_validation(found: Validation, run: RunDir) -> None:
    """Write validation.json atomically."""
    rundir.write_json(run.validation, found.model_dump(mode="json"))
