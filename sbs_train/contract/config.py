"""Settings of a training run: one tree of frozen dataclasses, from which the command line is made.

Defaults are those of the method (`recipes.py` changes them per task). A run keeps its settings in config.json.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import ConfigDict, TypeAdapter

from sbs_train.contract import rundir
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Family
from sbs_train.contract.target import bops_of, target_reduction
from sbs_train.contract.urls import refuse_credentials

Mode = Literal["joint", "prune", "quantize"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """One stage of gradient descent on the weights: SGD with Nesterov momentum."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: int
    lr: float
    """Peak learning rate of the weights."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate is divided by 10; it falls along a cosine unless given. The search's is constant."""
    steps_per_epoch: int | None = None
    """Batches in one epoch; all of the training set unless given."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    patience: int = 0
    """Stop after this many epochs without a better validation accuracy; 0 never stops early."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(FitConfig):
    """The float network."""

    epochs: int = 30
    lr: float = 0.1


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Clip values to start from."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batches: int = 8
    """Training batches that activation ranges are estimated from."""
    method: Literal["mse", "percentile", "min-max"] = "mse"
    """"mse" gives every bitwidth the clip value with the least squared error; the others give all bitwidths one."""
    percentile: float = 99.9
    """Of |activation|, with method "percentile"."""
    weight_sigmas: float = 3.0
    """Weight clip in standard deviations, unless the method is "mse"."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(FitConfig):
    """Weights, clip values and gate thresholds are trained together under the BOP budget."""

    epochs: int = 30
    """0 searches nothing: every layer keeps its finest bits and all of its filters."""
    lr: float = 0.02
    """Learning rate of the weights; constant, since fine-tuning follows."""
    bits_weights: tuple[int, ...] = (2, 4, 8)
    bits_activations: tuple[int, ...] = (2, 4, 8)
    lr_clip: float = 0.01
    metric: Literal["loss", "error"] = "loss"
    """What a gate is judged by: the loss it saves, against the price of its BOPs; or its quantization error, against a
    learned threshold (the paper)."""
    adaptation: float = 0.3
    """With metric "loss": the part of a weight's or a filter's estimated loss that training does not take back."""
    lr_threshold: float = 0.01
    """Adam, on normalised metrics; decays to 0 over `settle` of the search. This and the next ones: metric "error"."""
    threshold_start: float = 0.7
    """First threshold of the quantization gates, whose metrics start at 1: the search begins at once."""
    lr_pruning: float = 0.0025
    """The same for the pruning thresholds, which are fractions of a layer: a filter is dearer than two bits."""
    settle: tuple[float, float] = (0.7, 0.95)
    """From the first fraction of the search on, plans are candidates for the result. With metric "loss" the gates rest
    from there; with metric "error" the thresholds' learning rate falls to 0 until the second fraction."""
    units: Literal["start", "grid"] = "start"
    """What quantization errors are measured in: what each one was at the start of the search, or the mean error of its
    grid (one unit for all tensors of a bitwidth)."""
    alternate: bool = True
    """Weight and pruning thresholds learn on even steps, activation thresholds on odd ones (the paper)."""
    temperature: float = 1.0
    """Slope of the sigmoid whose derivative stands in for the step of a gate."""
    group_size: int = 4
    """Filters that are pruned together."""
    align: int | Literal["auto"] = 1
    """Kept channels come in multiples of this, such as 16 for INT8 tensor cores; layers that have no such number of
    channels to begin with are left whole. auto: the multiple that the device of --cost computes in."""
    prune: Literal["inside", "coupled"] = "inside"
    """Filters inside a block (the paper), or residual streams as well, whose layers lose the same channels."""
    max_pruning_ratio: float = 0.75
    """Largest part of a layer's filters that may be pruned."""
    pruning_metric: Literal["rank", "norm"] = "rank"
    """Rank of the group's norm within its layer, or mean |w| / max |w| (the paper)."""
    standardise: Literal["scale", "mean-std"] | None = None
    """Weights are divided by their deviation, or centred as well (the paper); by grid unless given."""
    quantize_residual: bool = True
    """Both operands of residual additions at 8 bits: what lets an INT8 engine keep whole blocks in integers."""
    lambda_: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """A fixed weight of log(BOPs) instead of the controller's, with metric "error"; the plan at the end still meets
    `--target`, unless that is none."""

    def aligned_to(self, device: int | None) -> int:
        """`align` as a number; `device` is the alignment of the device of --cost, if there is one."""
        align = device if self.align == "auto" else self.align
        if align is None:
            raise SbsError("--search.align auto needs --cost device.json; give a number, such as --search.align 16")
        return align


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FitConfig):
    """Weights and clip values, the plan frozen."""

    epochs: int = 30
    lr: float = 0.02
    lr_clip: float = 0.005
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then kept instead of the best epoch's; 0.99 suits a thousand
    steps and more (docs/LOG.md), 0 does without."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a run depends on."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str = "resnet20"
    """resnet20, resnet56 or mobilenetv2 (built in), torchvision:NAME, timm:NAME, or path/to/file.py:factory, a function
    that returns a torch.nn.Module."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish (downloaded once)."""
    width: int = 16
    """Channels of the first stage (ResNets) or of the stem (mobilenetv2: a multiple of 8, 32 is multiplier 1.0)."""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, imagenet, folder:PATH (train/CLASS/… and val/CLASS/…) or wds:URLS."""
    data_dir: Path | None = None
    """Where the data set lies; its usual places are searched unless given."""
    test_shards: str | None = None
    """Shards of the test set, with wds:URLS; a part of the training shards unless given."""
    image_size: int = 224
    """Pixels of a side of the network's input, for images in files (imagenet, folder:, wds:)."""
    workers: int | None = None
    """Processes that read images in files; chosen by the number of cores unless given, 0 reads in the main process."""
    skip_bad_images: bool = False
    """Leave images out that cannot be read, and count them, instead of stopping."""
    target: str = "60x"
    """Reduction of BOPs against FP32 (60x), BOPs (32G), or none: whatever --search.lambda leads to. With --cost,
    milliseconds (1.2ms), or how many times faster than dense FP32 on that device (2x)."""
    cost: Path | None = None
    """device.json of `sbs-deploy profile-device`: the search goes by milliseconds of that device instead of BOPs."""
    max_bops: str | None = None
    """With --cost: at most so many BOPs as well, such as 5G."""
    mode: Mode = "joint"
    grid: Family = "int8"
    weights: Path | None = None
    """Float weights (safetensors) to start from; pretraining is skipped."""
    out: Path | None = None
    """Run directory; runs/RECIPE-TIME unless given."""
    seed: int = 0
    batch_size: int = 128
    """Images of one step, over all processes together."""
    device: str = "auto"
    """auto, cpu, cuda."""
    compile: bool = False
    """Fuse each quantizer with torch.compile: worth it on a GPU or for long runs."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: convolutions and linear layers compute in bfloat16 while they train; quantizers and evaluation do not."""
    accumulate: int = 1
    """Micro-batches that every process splits its part of a batch into, one after the other, to save memory."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all processes (GPUs only) instead of those of each."""
    checkpoint_minutes: float = 15.0
    """Largest age of a checkpoint within an epoch; 0 writes them at the ends of epochs only."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)


DATA_FIELDS = ("data", "data_dir", "test_shards", "image_size", "skip_bad_images")
"""The settings that decide what a batch of a seed holds."""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """JSON-able settings."""
    value: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    return value


def values_of(config: TrainConfig) -> dict[str, Any]:
    """The settings by field, as they are; of a subclass, without its own."""
    return {field.name: getattr(config, field.name) for field in fields(TrainConfig)}


def load_config(path: Path) -> TrainConfig:
    """Read config.json; SbsError names the first unknown or wrong field, or a value that no stage can work with."""
    config = read_record(path, TrainConfig, "start a new run with --out")
    try:
        check_config(config)
    except SbsError as error:
        raise SbsError(f"{path}: {str(error)[:300]}; start a new run with --out") from error
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write config.json atomically."""
    rundir.write_json(path, to_dict(config))


_MOST = {"--width": 2**12, "--image-size": 2**14}


def check_config(config: TrainConfig) -> None:
    """Refuse values no stage can work with; SbsError names the flag and a remedy."""
    positive = {
        "--width": config.width,
        "--batch-size": config.batch_size,
        "--accumulate": config.accumulate,
        "--image-size": config.image_size,
        "--calibrate.batches": config.calibrate.batches,
        "--search.group-size": config.search.group_size,
        "--search.align": config.search.aligned_to(1 if config.cost else None),
        "--search.temperature": config.search.temperature,
        "--search.adaptation": config.search.adaptation,
        "--calibrate.weight-sigmas": config.calibrate.weight_sigmas,
        "--pretrain.lr": config.pretrain.lr,
        "--search.lr": config.search.lr,
        "--finetune.lr": config.finetune.lr,
    }
    for flag, value in positive.items():
        most = _MOST.get(flag, 2**31)
        if not 0 < value <= most:
            raise SbsError(f"{flag} {value} must be above 0" + f" and at most {most}" * (value > 0))
    refuse_credentials(f"{config.data}::{config.test_shards}")
    if not 0 <= config.finetune.ema < 1:
        raise SbsError(f"--finetune.ema {config.finetune.ema} must be at least 0 and below 1")
    for stage in ("pretrain", "search", "finetune"):
        fit = getattr(config, stage)
        if fit.epochs < 0:
            raise SbsError(f"--{stage}.epochs {fit.epochs} must be 0 or more")
        if fit.steps_per_epoch is not None and fit.steps_per_epoch < 1:
            raise SbsError(f"--{stage}.steps-per-epoch {fit.steps_per_epoch} must be above 0")
        if not 0 <= fit.momentum < 1:
            raise SbsError(f"--{stage}.momentum {fit.momentum} must be at least 0 and below 1")
        for name in ("weight_decay", "patience", "lr_clip", "lr_threshold", "lr_pruning", "threshold_start"):
            if not 0 <= getattr(fit, name, 0) <= 2**31:
                raise SbsError(f"--{stage}.{name.replace('_', '-')} {getattr(fit, name)} must be 0 or more")
    if config.pretrained and not config.model.startswith(("torchvision:", "timm:")):
        raise SbsError(f"--pretrained: nobody publishes weights for {config.model}; give a file with --weights")
    if config.pretrained and config.weights is not None:
        raise SbsError("--pretrained and --weights both name weights to start from; give one of them")
    if config.workers is not None and config.workers < 0:
        raise SbsError(f"--workers {config.workers} must be 0 or more")
    if not config.checkpoint_minutes >= 0:
        raise SbsError(f"--checkpoint-minutes {config.checkpoint_minutes} must be 0 or more")
    if not 0 <= config.seed < 2**63:
        raise SbsError(f"--seed {config.seed} must lie in 0..{2**63 - 1}")
    for flag, bits in (
        ("--search.bits-weights", config.search.bits_weights),
        ("--search.bits-activations", config.search.bits_activations),
    ):
        if not bits or list(bits) != sorted(set(bits)) or bits[0] < 2 or bits[-1] > 8:
            raise SbsError(f"{flag} {' '.join(map(str, bits))} must be ascending and within 2..8, such as 2 4 8")
    if not 0 <= config.search.max_pruning_ratio < 1:
        raise SbsError(f"--search.max-pruning-ratio {config.search.max_pruning_ratio} must be at least 0 and below 1")
    if not 50 <= config.calibrate.percentile <= 100:
        raise SbsError(f"--calibrate.percentile {config.calibrate.percentile} must lie in 50..100")
    if config.search.lambda_ is not None and config.search.metric == "loss":
        raise SbsError("--search.lambda needs --search.metric error; with metric loss the budget sets the price")
    if config.target == "none" and config.search.lambda_ is None:
        raise SbsError("--target none needs --search.lambda, which then decides how much is saved")
    first, last = config.search.settle
    if not 0 < first < last <= 1:
        raise SbsError(f"--search.settle {first} {last} must ascend within 0..1")
    # The form alone: the network is not known yet.
    target_reduction(config.target, "ms" if config.cost else "BOPs", math.inf)
    if config.max_bops is not None:
        if config.cost is None:
            raise SbsError(f"--max-bops {config.max_bops} is a second limit beside --cost; give --target instead")
        if config.search.metric != "loss":
            raise SbsError("--max-bops needs --search.metric loss; one threshold cannot serve two limits")
        bops_of(config.max_bops, "--max-bops")
