"""The records of plan.json, each checked by itself; `plan.py` checks that they fit together."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sbs_train.contract import cost
from sbs_train.contract.errors import SbsError

FLOAT_BITS = cost.FP32_BITS

Clip = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, lt=2**63)]

Side = Annotated[int, Field(gt=0, le=2**16)]
Size = Annotated[int, Field(gt=0, le=2**24)]


class Strict(BaseModel):
    """Base of records that refuse unknown keys and are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Strict):
    """How the float network is called, and what its builder got: the contract knows no meaning of the arguments."""

    name: str
    arguments: Annotated[dict[str, Count], Field(default_factory=dict)]


class TensorSpec(Strict):
    """One input or output of a network."""

    name: str
    dtype: Literal["float32", "float16", "uint8", "int32", "int64", "bool"]
    shape: Annotated[list[Size | str], Field(max_length=8)]
    """Sizes of the axes; the name of an axis whose size may vary, such as "batch"."""
    mean: list[Finite] | None = None
    """Mean per channel, of pixels in 0..1, where a task normalises images."""
    std: list[Clip] | None = None

    @property
    def sample(self) -> tuple[int, ...]:
        """Shape of one sample, without axis 0; SbsError where another axis may vary too."""
        sizes = tuple(size for size in self.shape[1:] if isinstance(size, int))
        if len(sizes) != len(self.shape) - 1:
            raise SbsError(f"{self.name} {self.shape} has axes without a size; give a network of fixed sizes")
        return sizes

    @model_validator(mode="after")
    def _check(self) -> "TensorSpec":
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError(f"mean and std of {self.name} must have one value for each channel, or both be null")
        return self


class InputSpec(Strict):
    """Shape and normalisation of one image of a data set."""

    channels: Side
    height: Side
    width: Side
    mean: list[Finite]
    """Mean per channel, of pixels in 0..1."""
    std: list[Clip]

    @model_validator(mode="after")
    def _check(self) -> "InputSpec":
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std must have one value for each of the {self.channels} channels")
        return self

    def tensor(self, name: str) -> TensorSpec:
        """The network's input that takes batches of such images."""
        shape: list[int | str] = ["batch", self.channels, self.height, self.width]
        return TensorSpec(name=name, dtype="float32", shape=shape, mean=self.mean, std=self.std)


def image_of(text: str) -> tuple[int, int, int]:
    """Channels, height and width of `--input 3,224,224`; SbsError if it is not that."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SbsError(f"--input {text}: give channels, height and width, such as 3,224,224")
    channels, height, width = map(int, parts)
    return channels, height, width


class ChannelGroup(Strict):
    """Channels that exist or vanish together: the outputs of `producers` are the inputs of `consumers`."""

    id: str
    size: Count
    """Channels before pruning."""
    kept: Annotated[list[int], Field(min_length=1)]
    """Ascending indices of kept channels."""
    prunable: bool
    producers: list[str]
    consumers: list[str]

    @model_validator(mode="after")
    def _check(self) -> "ChannelGroup":
        if self.kept != sorted(set(self.kept)):
            raise ValueError(f"kept of group {self.id} must be ascending and without repeats")
        if self.kept[0] < 0 or self.kept[-1] >= self.size:
            raise ValueError(f"kept of group {self.id} must lie in 0..{self.size - 1}")
        if not self.prunable and len(self.kept) != self.size:
            raise ValueError(f"kept of group {self.id} drops channels, but the group is not prunable")
        return self


class LayerPlan(Strict):
    """One convolution or linear layer."""

    name: str
    kind: Literal["conv", "depthwise", "linear"]
    bits_w: int
    """Weight bits; 32 means float weights."""
    bits_a: int
    """Bits of the layer's input; 32 means a float input."""
    clip_w: Clip | None
    """Largest weight magnitude; null if and only if bits_w is 32."""
    clip_a: Clip | None
    """Largest input magnitude; null if and only if bits_a is 32."""
    signed_a: bool
    """Whether the input takes negative values."""
    macs: Count
    """Multiply-accumulates for one sample before pruning."""
    weights: Count
    """Weight elements before pruning."""
    kept_in: Count
    kept_out: Count
    group_in: str
    group_out: str

    @model_validator(mode="after")
    def _check(self) -> "LayerPlan":
        for bits, clip, field in ((self.bits_w, self.clip_w, "clip_w"), (self.bits_a, self.clip_a, "clip_a")):
            if (bits == FLOAT_BITS) != (clip is None):
                raise ValueError(f"{field} of layer {self.name} must be null exactly when its bits are {FLOAT_BITS}")
        return self

    @property
    def quantized(self) -> bool:
        return self.bits_w != FLOAT_BITS and self.bits_a != FLOAT_BITS


class AddPlan(Strict):
    """One residual addition, in the order in which the network runs them; both operands are 8-bit."""

    clip_lhs: Clip
    """Largest magnitude of the left operand."""
    clip_rhs: Clip
    signed_lhs: bool
    signed_rhs: bool
    low: Annotated[float, Field(le=0, allow_inf_nan=False)] | None = None
    """Least value of the sum, for backends that add in integers only if the sum is quantized too; null in plans of
    before the field."""
    high: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _check(self) -> "AddPlan":
        ends = (self.low, self.high)
        if ends != (None, None) and (self.low is None or self.high is None or not self.low < self.high):
            raise ValueError(f"the range {ends} of a sum is empty or lacks an end; low must be less than high")
        return self


class OutputRange(Strict):
    """The range of a quantized layer's output, for backends that compute a layer in integers only if its output is
    quantized too: behind the layer's BatchNorm, before an activation."""

    name: str
    """The layer's name."""
    low: Annotated[float, Field(le=0, allow_inf_nan=False)]
    high: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _check(self) -> "OutputRange":
        if not self.low < self.high:
            raise ValueError(f"the output range of {self.name} is empty; low must be less than high")
        return self


class CostSummary(Strict):
    """Bit-Operations for one sample; must match the layers' sum."""

    bops_fp32: Clip
    """BOPs of the dense network in FP32."""
    bops: Clip
    reduction: Clip
    """bops_fp32 / bops."""
    shares: dict[str, float]
    """Share of `bops` by layer name; sums to 1."""
