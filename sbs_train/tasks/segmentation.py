"""Segmentation: a class for every pixel, cross-entropy, mean intersection over union."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import InputSpec
from sbs_train.inputs.data.masks import IGNORED, MaskData
from sbs_train.tasks.images import Batch, ImageTask
from sbs_train.tasks.protocol import LOSS, Metrics, Model

OUT, AUX = "out", "aux"
"""Keys of torchvision's segmentation networks: logits, and those of an auxiliary head in training."""
AUX_WEIGHT = 0.5
"""Of the auxiliary head's loss, as torchvision trains its networks."""
WRAP = "wrap the model so that it returns logits (N, classes, height, width), or a dict with them as `out`"


@dataclass(frozen=True, kw_only=True)
class Segmentation(ImageTask[MaskData]):
    """Images with masks, whose pixels of class 255 count for nothing.

    Networks return logits (N, classes, H, W), or a dict as torchvision's do; logits of another size than the masks are
    resized.
    """

    batch_size: int = 16

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """Mean over the images of each one's mean cross-entropy; half of the auxiliary head's is added."""
        x_NCHW, y_NHW = batch
        found = model(x_NCHW)
        smoothing = self.label_smoothing if getattr(model, "training", False) else 0.0
        loss = self._losses(_logits(found), y_NHW, smoothing).mean()
        if isinstance(found, Mapping) and AUX in found:
            loss = loss + AUX_WEIGHT * self._losses(found[AUX], y_NHW, smoothing).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: Model, split: str) -> Metrics:
        """`miou` in percent (a mean over the classes that occur), cross-entropy `loss`, and the number of `images`."""
        from torchmetrics.classification import MulticlassJaccardIndex

        index = MulticlassJaccardIndex(
            self.data.num_classes, average="macro", ignore_index=IGNORED, sync_on_compute=False
        ).to(self.data.device)
        total = torch.zeros(2, dtype=torch.float64, device=self.data.device)
        for x_NCHW, y_NHW in self.data.eval_batches(split, self.rank_batch):
            logits = _resized(_logits(model(x_NCHW)), y_NHW)
            index.update(logits[:, : self.data.num_classes].argmax(1), y_NHW)
            total += torch.stack([self._losses(logits, y_NHW).double().sum(), total.new_tensor(len(y_NHW))])
        index.confmat = self.share.sum(index.confmat)
        loss, images = self.share.sum(total).tolist()
        return {"miou": 100 * float(index.compute()), LOSS: loss / images, "images": int(images)}

    def golden(self) -> Iterator[tuple[Tensor, None]]:
        """Test images."""
        return ((x_NCHW, None) for x_NCHW, _ in self.data.eval_batches("test", self.batch_size))

    @torch.no_grad()
    def sample_losses(self, model: Model, batches: int | None) -> Tensor:
        """`loss_N`: cross-entropy of this rank's images in the first batches of the validation split, or in all."""
        pairs = islice(self.data.eval_batches("val", self.rank_batch), batches)
        return self.joined([self._losses(_logits(model(x)), y) for x, y in pairs])

    def example(self, samples: int) -> Batch:
        """Images of zeros, all of the first class."""
        x_NCHW = self.blank(samples)
        return x_NCHW, torch.zeros_like(x_NCHW[:, 0], dtype=torch.int64)

    def _losses(self, logits: Tensor, y_NHW: Tensor, smoothing: float = 0.0) -> Tensor:
        """`loss_N`: each image's mean cross-entropy over the pixels that count; 0 where none does."""
        if logits.shape[1] < self.data.num_classes:
            classes = self.data.num_classes
            raise SbsError(
                f"the model returns {logits.shape[1]} logits a pixel, the data has {classes} classes; {WRAP}"
            )
        loss_NHW = F.cross_entropy(
            _resized(logits, y_NHW), y_NHW, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
        )
        return loss_NHW.sum((1, 2)) / (y_NHW != IGNORED).sum((1, 2)).clamp(min=1)


def untried(input: InputSpec, classes: int) -> Segmentation:
    """A task without data, to try models for such images on."""
    return Segmentation(
        data=MaskData(name="none", input=input, num_classes=classes, train=(), val=(), test=(), workers=0)
    )


def _logits(found: Any) -> Tensor:
    """The logits (N, classes, H, W) of a network's or an engine's output."""
    logits = found.get(OUT) if isinstance(found, Mapping) else found
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        kind = f"{type(found).__name__} with {', '.join(map(str, found))}" if isinstance(found, Mapping) else None
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(found).__name__
        raise SbsError(f"the model returns {kind or shape}; {WRAP}")
    return logits


def _resized(logits: Tensor, y_NHW: Tensor) -> Tensor:
    """Logits of the masks' size."""
    if logits.shape[2:] == y_NHW.shape[1:]:
        return logits
    return F.interpolate(logits, size=tuple(y_NHW.shape[1:]), mode="bilinear", align_corners=False)
