"""One stage of gradient descent: epochs, learning rate, validation, checkpoints, early stopping and resuming.

Everything random in an epoch depends on (seed, stage, epoch) alone, so a run that was killed and resumed takes the
same steps as one that was not.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sbs_train.contract import rundir
from sbs_train.contract.config import FitConfig
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import Dataset, Split
from sbs_train.stages.context import Context

Scalars = dict[str, float]
Shape = Callable[[float], float]
"""Finished fraction of a stage (0..1) to the fraction of the peak learning rate."""


class Stateful(Protocol):
    """What a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Best:
    """The snapshot with the best validation accuracy so far; the later one of equals."""

    def __init__(self) -> None:
        self.score = -math.inf
        self.epoch = -1
        self.payload: dict[str, Any] = {}

    def offer(self, score: float, epoch: int, payload: Callable[[], dict[str, Any]]) -> None:
        """Keep `payload()` if `score` is at least the best."""
        if score >= self.score:
            self.score, self.epoch, self.payload = score, epoch, payload()

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, "payload": self.payload}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.epoch, self.payload = state_dict["score"], state_dict["epoch"], state_dict["payload"]


def fit(
    ctx: Context,
    stage: str,
    config: FitConfig,
    *,
    model: nn.Module,
    optimizers: list[tuple[Optimizer, Shape]],
    train_step: Callable[[Tensor, Tensor, int], dict[str, Tensor]],
    end_epoch: Callable[[int, Scalars], Scalars],
    best: Best,
    state: Mapping[str, Stateful],
    settings: str,
) -> None:
    """Train for `config.epochs`, resuming from `checkpoints/STAGE.pt` if it was made with the same `settings`.

    Args:
        optimizers: each with the shape of its learning rate over the stage.
        train_step: one batch (x_NCHW, y_N) and the global step to scalars worth logging; steps the optimizers.
        end_epoch: (0-based epoch, its scalars) to more scalars, from validation; offers snapshots to `best`.
        state: what a checkpoint holds besides the model, the optimizers and `best`.
        settings: hash of everything the stage depends on.

    Raises:
        SbsError: the loss is no longer finite.
    """
    steps = config.steps_per_epoch or ctx.data.steps_per_epoch(ctx.config.batch_size)
    path = ctx.run.checkpoints / f"{stage}.pt"
    everything: dict[str, Stateful] = {"model": model, "best": best, **state}
    everything.update({f"optimizer{i}": optimizer for i, (optimizer, _) in enumerate(optimizers)})
    peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer, _ in optimizers]
    first = _load_checkpoint(path, everything, settings)
    if first:
        ctx.log(f"{stage}: resuming after epoch {first} of {config.epochs}")
    with ctx.progress() as progress:
        task = progress.add_task(stage, total=config.epochs * steps, completed=first * steps)
        for epoch in range(first, config.epochs):
            if config.patience and best.payload and epoch - 1 - best.epoch >= config.patience:
                ctx.log(f"{stage}: no better validation accuracy for {config.patience} epochs; stopping early")
                break
            seed = epoch_seed(ctx.config.seed, stage, epoch)
            torch.manual_seed(seed)
            model.train()
            totals: dict[str, Tensor] = {}
            batches = ctx.data.train_batches(ctx.config.batch_size, seed, steps)
            for index, (x_NCHW, y_N) in enumerate(batches):
                step = epoch * steps + index
                _set_rates(optimizers, peaks, step / (config.epochs * steps))
                for name, value in train_step(x_NCHW, y_N, step).items():
                    totals[name] = totals.get(name, torch.zeros_like(value)) + value.detach()
                progress.advance(task)
            scalars = {name: float(total) / steps for name, total in totals.items()}
            if not math.isfinite(scalars["loss"]):
                raise SbsError(
                    f"{stage}: the loss is {scalars['loss']} in epoch {epoch + 1}; the stages before it are kept: "
                    f"repeat this one with --resume and a smaller --{stage}.lr (now {config.lr})"
                )
            scalars |= end_epoch(epoch, dict(scalars))
            _log_epoch(ctx, stage, epoch, config.epochs, scalars)
            _save_checkpoint(path, everything, settings, epoch + 1)


def constant(fraction: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(fraction: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def sgd(parameters: Iterable[Any], config: FitConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay is given per parameter group."""
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def decayed(model: nn.Module, config: FitConfig, exclude: set[int]) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, biases and normalisation do not; ids in `exclude` are left out."""
    parameters = [p for p in model.parameters() if id(p) not in exclude]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def evaluate(data: Dataset, model: nn.Module, split: Split) -> dict[str, float]:
    """`top1` and `top5` in percent, cross-entropy `loss`, and the number of `images`."""
    model.eval()
    top1 = top5 = loss = 0.0
    for x_NCHW, y_N in data.eval_batches(split):
        logits = model(x_NCHW)
        hit = logits.topk(min(5, logits.shape[1]), 1).indices == y_N[:, None]
        top1 += float(hit[:, 0].sum())
        top5 += float(hit.sum())
        loss += float(F.cross_entropy(logits, y_N, reduction="sum"))
    count = len(split)
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "loss": loss / count, "images": count}


@torch.no_grad()
def reestimate_batchnorm(ctx: Context, model: nn.Module, batches: int = 20) -> None:
    """Replace BatchNorm statistics by averages over fresh training batches: quantization moves every mean."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seed = epoch_seed(ctx.config.seed, "batchnorm", 0)
    for x_NCHW, _ in ctx.data.train_batches(ctx.config.batch_size, seed, batches):
        model(x_NCHW)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A detached copy of a model's state."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def epoch_seed(seed: int, stage: str, epoch: int) -> int:
    """A seed for one epoch of one stage."""
    return zlib.crc32(f"{seed}/{stage}/{epoch}".encode())


def _set_rates(optimizers: list[tuple[Optimizer, Shape]], peaks: list[list[float]], fraction: float) -> None:
    for (optimizer, shape), rates in zip(optimizers, peaks, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * shape(fraction)


def _log_epoch(ctx: Context, stage: str, epoch: int, epochs: int, scalars: Scalars) -> None:
    for name, value in scalars.items():
        ctx.writer.add_scalar(f"{stage}/{name}", value, epoch)
    ctx.writer.flush()
    if (epoch + 1) % max(1, epochs // 10) == 0 or epoch + 1 == epochs:
        shown = ("loss", "val_top1", "lambda", "reduction")
        text = "  ".join(f"{name} {scalars[name]:.4g}" for name in shown if name in scalars)
        ctx.log(f"{stage} {epoch + 1}/{epochs}  {text}")


def _save_checkpoint(path: Path, everything: Mapping[str, Stateful], settings: str, epoch: int) -> None:
    state = {name: item.state_dict() for name, item in everything.items()}
    with rundir.atomic_path(path) as temporary:
        torch.save({"settings": settings, "epoch": epoch, "state": state}, temporary)


def _load_checkpoint(path: Path, everything: Mapping[str, Stateful], settings: str) -> int:
    """Epochs done; 0 if there is no checkpoint of these settings."""
    if not path.is_file():
        return 0
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes lead to
        raise SbsError(f"{path} is damaged ({type(error).__name__}); delete it to repeat the stage") from error
    if checkpoint["settings"] != settings:
        return 0
    try:
        for name, item in everything.items():
            item.load_state_dict(checkpoint["state"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise SbsError(f"{path} was made by another version of sbs; delete it to repeat the stage") from error
    epoch: int = checkpoint["epoch"]
    return epoch
