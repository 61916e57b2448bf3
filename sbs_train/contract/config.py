"""Settings of a training run: one tree of frozen dataclasses, from which the command line is made.

Defaults are those of the method (`recipes.py` changes them per task). A run keeps its settings in config.json.
"""

import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter

from sbs_train.contract import rundir
from sbs_train.contract.checked import ABOVE_0, Checked, Fraction, NotNegative, Positive, Range, at_most
from sbs_train.contract.documents import read_record
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Family
from sbs_train.contract.stage_config import CalibrateConfig as CalibrateConfig
from sbs_train.contract.stage_config import FinetuneConfig as FinetuneConfig
from sbs_train.contract.stage_config import FitConfig as FitConfig
from sbs_train.contract.stage_config import PretrainConfig as PretrainConfig
from sbs_train.contract.stage_config import SearchConfig as SearchConfig
from sbs_train.contract.target import bops_of, target_reduction
from sbs_train.contract.trust import is_code
from sbs_train.contract.urls import refuse_credentials, shown

Mode = Literal["joint", "prune", "quantize"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """All settings of a training run."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    task: str = "classification"
    """classification, segmentation, or path/to/file.py:factory, a function that returns a task (docs/tasks.md); it gets
    the settings that its parameters name, such as data_dir."""
    model: str = "resnet20"
    """resnet20, resnet56 or mobilenetv2 (built in), torchvision:NAME, timm:NAME, or path/to/file.py:factory, a function
    that returns a torch.nn.Module."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish (downloaded once)."""
    width: Annotated[int, ABOVE_0, at_most(2**12)] = 16
    """Channels of the first stage (ResNets) or of the stem (mobilenetv2: a multiple of 8, 32 is multiplier 1.0)."""
    data: str = "digits"
    """digits, fashion-mnist, cifar10, cifar100, imagenet, folder:PATH (train/CLASS/… and val/CLASS/…) or wds:URLS. For
    segmentation folder:PATH with {train,val}/{images,masks}."""
    data_dir: Path | None = None
    """Where the data set lies; its usual places are searched unless given."""
    test_shards: str | None = None
    """Shards of the test set, with wds:URLS; a part of the training shards unless given."""
    image_size: Annotated[int, ABOVE_0, at_most(2**14)] = 224
    """Pixels of a side of the network's input, for images in files (imagenet, folder:, wds:)."""
    workers: NotNegative[int | None] = None
    """Processes that read images in files; chosen by the number of cores unless given, 0 reads in the main process."""
    skip_bad_images: bool = False
    """Leave images out that cannot be read, and count them, instead of stopping."""
    target: str = "60x"
    """Reduction of BOPs against FP32 (60x), or BOPs (32G). With --cost, milliseconds (1.2ms), or how many times faster
    than dense FP32 on that device (2x). none: --search.lambda decides, or no search at all with --search.epochs 0."""
    cost: Path | None = None
    """device.json of `sbs-deploy profile-device` with this network: the search goes by milliseconds of that device
    instead of BOPs, and every layer may be in float."""
    max_bops: str | None = None
    """With --cost: at most so many BOPs as well, such as 5G."""
    mode: Mode = "joint"
    """joint: bits and filters are searched; quantize: bits alone; prune: filters alone, all layers in float."""
    grid: Family = "int8"
    """int8: codes of all bits fit INT8 with zero-point 0; paper: the paper's grids, whose 8-bit codes do not."""
    label_smoothing: Fraction[float] = 0.0
    """Part of the target that every class gets in training; for classification and segmentation."""
    mixup: NotNegative[float] = 0.0
    """Parameter of the Beta distribution by which two images and their targets are mixed in training, such as 0.2; for
    classification. 0 mixes none."""
    teacher: Literal["none", "self"] = "none"
    """self: in the search and in fine-tuning, the float network's outputs are a second target, for any task."""
    teacher_weight: Positive[float] = 1.0
    """Weight of the distance to the teacher's outputs, which is relative to their mean square."""
    weights: Path | None = None
    """Float weights (safetensors) to start from; pretraining is skipped."""
    out: Path | None = None
    """Run directory; runs/RECIPE-TIME unless given."""
    seed: Annotated[int, Range(f"must lie in 0..{2**63 - 1}", lambda value: 0 <= value < 2**63)] = 0
    batch_size: Positive[int] = 128
    """Samples of one step, over all processes together; a task of your own has its own batches."""
    device: str = "auto"
    """auto, cpu, cuda."""
    compile: bool = False
    """Fuse each quantizer with torch.compile: worth it on a GPU or for long runs."""
    precision: Literal["32", "bf16"] = "32"
    """bf16: convolutions and linear layers compute in bfloat16 while they train; quantizers and evaluation do not."""
    accumulate: Positive[int] = 1
    """Micro-batches that every process splits its part of a batch into, one after the other, to save memory."""
    sync_batchnorm: bool = False
    """BatchNorm over the images of all processes (GPUs only) instead of those of each."""
    checkpoint_minutes: NotNegative[float] = 15.0
    """Largest age of a checkpoint within an epoch; 0 writes them at the ends of epochs only."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def check(self, prefix: str = "--") -> None:
        """Refuse settings that no run can work with, or that contradict each other; raises SbsError."""
        super().check(prefix)
        for stage in ("pretrain", "calibrate", "search", "finetune"):
            getattr(self, stage).check(f"{prefix}{stage}.")
        refuse_credentials(f"{self.data}::{self.test_shards}")
        if self.pretrained and not self.model.startswith(("torchvision:", "timm:")):
            raise SbsError(f"--pretrained: nobody publishes weights for {self.model}; give a file with --weights")
        if self.pretrained and self.weights is not None:
            raise SbsError("--pretrained and --weights both name weights to start from; give one of them")
        if self.target == "none" and self.search.epochs and self.search.lambda_ is None:
            raise SbsError("--target none needs --search.lambda, which then decides how much is saved")
        # Checks the syntax alone: the network is not known yet.
        target_reduction(self.target, "ms" if self.cost else "BOPs", math.inf)
        if self.max_bops is not None:
            if self.cost is None:
                raise SbsError(f"--max-bops {self.max_bops} is a second limit beside --cost; give --target instead")
            if self.search.metric != "loss":
                raise SbsError("--max-bops needs --search.metric loss; one threshold cannot serve two limits")
            bops_of(self.max_bops, "--max-bops")


DATA_FIELDS = ("task", "data", "data_dir", "test_shards", "image_size", "skip_bad_images")
"""The settings that, with a seed, decide the samples of a batch."""
TRAIN_FIELDS = ("label_smoothing", "mixup")
"""The settings of a built-in task's loss in training."""
LOSS_FIELDS = (*TRAIN_FIELDS, "teacher", "teacher_weight")
"""The settings of the loss of the search and of fine-tuning."""


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Settings as a JSON-able dict."""
    value: dict[str, Any] = TypeAdapter(TrainConfig).dump_python(config, mode="json")
    return value


def values_of(config: TrainConfig) -> dict[str, Any]:
    """The values of all fields of `TrainConfig`, unconverted; fields of a subclass are left out."""
    return {field.name: getattr(config, field.name) for field in fields(TrainConfig)}


def load_config(path: Path) -> TrainConfig:
    """Read config.json; SbsError names the first unknown or wrong field, or a value that no stage can work with."""
    config = read_record(path, TrainConfig, "start a new run with --out")
    try:
        config.check()
    except SbsError as error:
        raise SbsError(f"{path}: {str(error)[:300]}; start a new run with --out") from error
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write config.json atomically."""
    rundir.write_json(path, to_dict(config))


GIVEN = "given:"
"""In config.json before the class of a model or a task that the user's code gave to `sbs_train.compress`: no command
can make it from that name."""


def require_named(config: TrainConfig, what: str) -> None:
    """SbsError for a run of a model or a task at hand, which only the user's code can make again."""
    for kind, name in (("model", config.model), ("task", config.task)):
        if name.startswith(GIVEN):
            raise SbsError(
                f"{what}: only your code has its {kind} ({name.removeprefix(GIVEN)}). There go on with "
                f"`sbs_train.compress` and the same out, export with `sbs_deploy.export`, or evaluate an engine with "
                f"`sbs_deploy.evaluate(run, task)`"
            )


def data_words(data: str, task: str) -> str:
    """What tables call a run's data: the data set, or the task that brings its own.

    >>> data_words("digits", "classification"), data_words("digits", "work/depth.py:rooms")
    ('digits', 'depth.py:rooms')
    """
    own = task.startswith(GIVEN) or is_code(task)
    return task.removeprefix(GIVEN).rpartition("/")[2] if own else shown(data)


def plain_name(config: TrainConfig) -> str:
    """Data and model as part of a file name: without the paths and URLs that they may hold."""
    own = data_words(config.data, config.task) if is_code(config.task) else config.data.partition(":")[0]
    return re.sub(r"[^\w.]+", "-", f"{own}-{config.model.rpartition('/')[2]}")
