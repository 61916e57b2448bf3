"""Settings of the four stages of a training run; `config.py` has those of the whole run."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from pydantic import ConfigDict

from sbs_train.contract.checked import ABOVE_0, Checked, Fraction, NotNegative, Positive, Range, at_most
from sbs_train.contract.cost import channel_step
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class FitConfig(Checked):
    """One stage of gradient descent on the weights."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: NotNegative[int]
    lr: Positive[float]
    """Peak learning rate of the weights."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd with Nesterov momentum, or adamw, whose rates are near 0.001 (`lr`, and `lr_clip` of clip values)."""
    warmup: NotNegative[float] = 0.0
    """Epochs in which the rate rises along a line to its peak."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate is divided by 10; without them it falls along a cosine (in the search: constant)."""
    steps_per_epoch: Positive[int | None] = None
    """Batches in one epoch; all of the training set unless given."""
    momentum: Fraction[float] = 0.9
    """Of SGD; the first beta of AdamW."""
    weight_decay: NotNegative[float] = 5e-4
    patience: NotNegative[int] = 0
    """Stop after this many epochs without a better validation score; 0 never stops early."""

    def check(self, prefix: str = "--") -> None:
        """Refuse numbers out of their ranges, and a warm-up that never ends; raises SbsError."""
        super().check(prefix)
        if self.epochs and self.warmup >= self.epochs:
            raise SbsError(f"{prefix}warmup {self.warmup} must be below {prefix}epochs {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(FitConfig):
    """Settings of pretraining, which trains the float network."""

    epochs: NotNegative[int] = 30
    lr: Positive[float] = 0.1


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(Checked):
    """Settings of calibration, which finds the first clip values."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batches: Positive[int] = 8
    """Training batches that activation ranges are estimated from."""
    method: Literal["mse", "percentile", "min-max"] = "mse"
    """"mse" gives every bitwidth the clip value with the least squared error; the others give all bitwidths one."""
    percentile: Annotated[float, Range("must lie in 50..100", lambda value: 50 <= value <= 100)] = 99.9
    """Of |activation|, with method "percentile"."""
    weight_sigmas: Positive[float] = 3.0
    """Weight clip in standard deviations, unless the method is "mse"."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(FitConfig):
    """Settings of the search, which trains weights, clip values and gates under the budget."""

    epochs: NotNegative[int] = 30
    """0 searches nothing: every layer keeps its finest bits and all of its filters."""
    lr: Positive[float] = 0.02
    """Learning rate of the weights; constant, since fine-tuning follows."""
    bits_weights: tuple[int, ...] = (2, 4, 8)
    """Candidate bits. With --cost, float is one more candidate. With --cost and no --max-bops, of these bits only the
    finest remain, since a device computes 2 and 4 bits in 8."""
    bits_activations: tuple[int, ...] = (2, 4, 8)
    lr_clip: NotNegative[float] = 0.01
    metric: Literal["loss", "error"] = "loss"
    """How gates are decided: loss compares the loss that a gate saves with the price of its cost; error compares its
    quantization error with a learned threshold (the paper), and leaves no layer in float."""
    adaptation: Positive[float] = 0.3
    """With metric "loss": the part of a weight's or a filter's estimated loss that training does not take back."""
    lr_threshold: NotNegative[float] = 0.01
    """With metric "error": Adam's learning rate of the quantization thresholds; decays to 0 over `settle`."""
    threshold_start: NotNegative[float] = 0.7
    """With metric "error": first threshold of the quantization gates, whose metrics start at 1."""
    lr_pruning: NotNegative[float] = 0.0025
    """With metric "error": learning rate of the pruning thresholds, smaller as a filter costs more than two bits."""
    settle: tuple[float, float] = (0.7, 0.95)
    """From the first fraction of the search on, plans are candidates for the result. With metric "loss" the gates rest
    from there; with metric "error" the thresholds' learning rate falls to 0 until the second fraction."""
    units: Literal["start", "grid"] = "start"
    """Unit of quantization errors: start, the error of the same tensor at the start of the search; or grid, the mean
    error of its grid (one unit for all tensors of a bitwidth)."""
    alternate: bool = True
    """Weight and pruning thresholds learn on even steps, activation thresholds on odd ones (the paper)."""
    temperature: Positive[float] = 1.0
    """Slope of the sigmoid whose derivative stands in for the step of a gate."""
    group_size: Positive[int] = 4
    """Filters that are pruned together."""
    align: Annotated[int | Literal["auto"], ABOVE_0, at_most(2**31)] = "auto"
    """Kept channels come in multiples of this, such as 16 for INT8 tensor cores; layers whose own number of channels
    is no multiple stay whole. auto: with --cost the steps in which the device was measured (4 of 16 channels, 8 of 32,
    16 of 64 and more), else any number."""
    prune: Literal["auto", "inside", "coupled"] = "auto"
    """inside: filters inside a block (the paper). coupled: residual streams as well, whose layers lose the same
    channels. auto: coupled with --cost, since milliseconds fall with whole streams, else inside."""
    max_pruning_ratio: Fraction[float] = 0.75
    """Largest part of a layer's filters that may be pruned."""
    pruning_metric: Literal["rank", "norm"] = "rank"
    """Rank of the group's norm within its layer, or mean |w| / max |w| (the paper)."""
    standardise: Literal["scale", "mean-std"] | None = None
    """Weights are divided by their deviation, or centred as well (the paper); by grid unless given."""
    quantize_residual: bool = True
    """Both operands of residual additions at 8 bits: what lets an INT8 engine keep whole blocks in integers."""
    tournament: Annotated[NotNegative[int], tyro.conf.arg(aliases=["--tournament"])] = 3
    """At the end of a search its plan meets simple plans of no larger cost: uniform bits, one width for all layers,
    Taylor and magnitude rankings. So many of the best train on for a short while; the best on the validation split is
    kept. 0, or a search of less than 25 steps: no tournament."""
    lambda_: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """With metric "error": a fixed weight of log(BOPs) instead of the controller's; the final plan still meets
    `--target`, unless the target is none."""

    def multiple_for(self, size: int, measured: bool) -> int:
        """Multiple in which channels of a group of `size` are kept; `measured` if the cost is that of a device."""
        if self.align != "auto":
            return self.align
        return channel_step(size) if measured else 1

    def reach(self, *, with_cost: bool) -> Literal["inside", "coupled"]:
        """`prune` without auto; `with_cost` says whether the target is in milliseconds."""
        if self.prune != "auto":
            return self.prune
        return "coupled" if with_cost else "inside"

    def check(self, prefix: str = "--search.") -> None:
        """Refuse bits, thresholds or a pace that no search can work with; raises SbsError."""
        super().check(prefix)
        for name, bits in (("weights", self.bits_weights), ("activations", self.bits_activations)):
            if not bits or list(bits) != sorted(set(bits)) or bits[0] < 2 or bits[-1] > 8:
                found = " ".join(map(str, bits))
                raise SbsError(f"--search.bits-{name} {found} must be ascending and within 2..8, such as 2 4 8")
        first, last = self.settle
        if not 0 < first < last <= 1:
            raise SbsError(f"--search.settle {first} {last} must ascend within 0..1")
        if self.lambda_ is not None and self.metric == "loss":
            raise SbsError("--search.lambda needs --search.metric error; with metric loss the budget sets the price")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FitConfig):
    """Settings of fine-tuning, which trains weights and clip values of a frozen plan."""

    epochs: NotNegative[int] = 30
    lr: Positive[float] = 0.02
    lr_clip: NotNegative[float] = 0.005
    ema: Fraction[float] = 0.0
    """Decay of a moving average of the weights, which is then kept instead of the best epoch's; 0.99 suits a thousand
    steps and more (docs/LOG.md), 0 does without."""
