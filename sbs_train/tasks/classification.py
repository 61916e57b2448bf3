"""Classification: one label for each image, cross-entropy, top-1 and top-5."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data import Dataset, Split
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit
from sbs_train.tasks.images import Batch, ImageTask
from sbs_train.tasks.protocol import LOSS, Metrics, Model

WRAP = "wrap the model so that it takes images alone and returns logits (N, classes) in training as well"


@dataclass(frozen=True, kw_only=True)
class Classification(ImageTask[Dataset]):
    """Images with one label each; `Divided`, so that ranks and micro-batches share a batch.

    >>> from sbs_train.inputs.data import load_dataset
    >>> task = Classification(data=load_dataset("digits"), batch_size=64)
    >>> x_NCHW, y_N = next(iter(task.train_batches(0)))
    >>> x_NCHW.shape, y_N.shape
    (torch.Size([64, 1, 16, 16]), torch.Size([64]))
    """

    batch_size: int = 128
    mixup: float = 0.0
    """Parameter of the Beta distribution by which two images are mixed in training (Zhang et al., arXiv 1710.09412)."""

    @property
    def bad_images(self) -> int:
        """How often this process met an unreadable image."""
        return self.data.bad_images

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Mean cross-entropy, in training mode of mixed images and smoothed labels where the settings say so.

        Raises:
            SbsError: the model does not return logits (N, classes).
        """
        x_NCHW, y_N = batch
        if not getattr(model, "training", False):
            return F.cross_entropy(self._logits(model, x_NCHW), y_N)
        if not self.mixup:
            return F.cross_entropy(self._logits(model, x_NCHW), y_N, label_smoothing=self.label_smoothing)
        part = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
        other = torch.randperm(len(y_N)).to(y_N.device)
        logits = self._logits(model, part * x_NCHW + (1 - part) * x_NCHW[other])
        own, others = (F.cross_entropy(logits, y, label_smoothing=self.label_smoothing) for y in (y_N, y_N[other]))
        return part * own + (1 - part) * others

    @torch.no_grad()
    def evaluate(self, model: Model, split: str) -> Metrics:
        """`top1` and `top5` in percent, cross-entropy `loss`, and the number of `images`, of all ranks together."""
        sums, images = torch.zeros(3, dtype=torch.float64, device=self.data.device), 0
        for x_NCHW, y_N in self.data.eval_batches(self._split(split)):
            logits = self._logits(model, x_NCHW)
            hit = logits.topk(min(5, logits.shape[1]), 1).indices == y_N[:, None]
            loss = F.cross_entropy(logits, y_N, reduction="sum")
            sums += torch.stack([hit[:, 0].sum(), hit.sum(), loss.double()])
            images += len(y_N)
        top1, top5, total, count = self.share.sum(torch.cat([sums, sums.new_tensor([images])])).tolist()
        return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, LOSS: total / count, "images": int(count)}

    def golden(self) -> Iterator[Batch]:
        """Test images and their labels."""
        return self.data.eval_batches(self.data.test)

    @torch.no_grad()
    def sample_losses(self, model: Model, batches: int | None) -> Tensor:
        """`loss_N`: cross-entropy of this rank's images in the first batches of the validation split, or in all."""
        pairs = islice(self.data.eval_batches(self.data.val, self.rank_batch), batches)
        return self.joined([F.cross_entropy(self._logits(model, x), y, reduction="none") for x, y in pairs])

    def example(self, samples: int) -> Batch:
        """Images of zeros, all of the first class."""
        return self.blank(samples), torch.zeros(samples, dtype=torch.int64, device=self.data.device)

    def _split(self, name: str) -> Split:
        return {"train": self.data.train, "val": self.data.val, "test": self.data.test}[name]

    def _logits(self, model: Model, x_NCHW: Tensor) -> Tensor:
        """The model's logits (N, classes), one for each class or more."""
        found, images = model(x_NCHW), len(x_NCHW)
        if not isinstance(found, Tensor):
            raise SbsError(f"the model returns {_described(found)}; {WRAP}")
        if found.dim() != 2 or len(found) != images:
            raise SbsError(f"for {images} image{'s'[: images - 1]} the model returns {list(found.shape)}; {WRAP}")
        if found.shape[1] < self.data.num_classes:
            classes = self.data.num_classes
            raise SbsError(f"the model returns {found.shape[1]} logits, the data has {classes} classes; {WRAP}")
        return found


def untried(input: InputSpec, classes: int) -> Classification:
    """A task without data, to try models for such images on."""
    none = MemorySplit(
        images=torch.zeros(0, input.channels, input.height, input.width, dtype=torch.uint8),
        labels=torch.zeros(0, dtype=torch.int64),
    )
    return Classification(
        data=MemoryDataset(
            name="none", input=input, num_classes=classes, shift=0, flip=False, train=none, val=none, test=none
        )
    )


def _described(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(str, output))}"
    if isinstance(output, list | tuple):
        parts = [f"Tensor {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__ for one in output]
        return f"{kind} ({', '.join(parts)})"
    return kind
