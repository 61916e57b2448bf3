"""One stage of gradient descent: epochs, learning rate, validation, checkpoints, early stopping and resuming.

The order of the batches depends on (seed, stage, epoch) alone, and what the network itself draws, such as dropout, on
(seed, stage, epoch, step, rank): a run that was killed and resumed takes the same steps as one that was not.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sbs_train.contract.config import FitConfig
from sbs_train.contract.errors import SbsError
from sbs_train.stages.checkpoint import Checkpoint, Position, Stateful
from sbs_train.stages.context import Context, Stage
from sbs_train.stages.rates import Shape
from sbs_train.tasks.protocol import LOSS, Batch, Metrics, score_of

Scalars = dict[str, float]

CHECK_EVERY = 100
"""Steps between two checks of the loss: each check makes a GPU wait."""


class Best:
    """The snapshot with the best validation score so far; of equals the later one."""

    def __init__(self, check: Callable[[dict[str, Any]], object]) -> None:
        """`check` raises if a payload read from a checkpoint has a wrong form."""
        self._check = check
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
        if state_dict["payload"]:
            self._check(state_dict["payload"])
        self.score, self.epoch, self.payload = state_dict["score"], state_dict["epoch"], state_dict["payload"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a stage trains: its optimizers, its step, and what follows an epoch."""

    model: nn.Module
    optimizers: list[tuple[Optimizer, Shape]]
    """Optimizers, each with the shape of its learning rate over the stage."""
    step: Callable[[Sequence[Batch], int], dict[str, Tensor]]
    """Takes this rank's micro-batches and the stage's step number, steps the optimizers and returns scalars to log,
    equal on every rank."""
    end_epoch: Callable[[int, Scalars], Scalars]
    """Takes the 0-based epoch and its scalars, validates, offers a snapshot to `best` and returns more scalars."""
    best: Best
    state: Mapping[str, Stateful]
    """More objects whose state a checkpoint holds, besides the model, the optimizers and `best`."""


def fit(ctx: Context, stage: Stage, config: FitConfig, training: Training) -> float:
    """Train for `config.epochs`, resuming from `checkpoints/STAGE.pt` if its inputs are the stage's.

    Returns:
        Seconds that earlier sessions spent on the stage.

    Raises:
        SbsError: the loss is no longer finite, or a checkpoint cannot be written or read.
    """
    model, optimizers, best, name = training.model, training.optimizers, training.best, stage.name
    steps = config.steps_per_epoch or ctx.feed.steps_per_epoch
    parts: dict[str, Stateful] = {"model": model, "best": best, **training.state}
    parts.update({f"optimizer{i}": optimizer for i, (optimizer, _) in enumerate(optimizers)})
    peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer, _ in optimizers]
    checkpoint = Checkpoint(ctx, name, parts, stage.settings)
    at = checkpoint.resume()
    if at.epoch > config.epochs or at.step >= steps or (at.epoch == config.epochs and not best.payload):
        ctx.ranks.stop(SbsError(f"{checkpoint.path} is damaged (its epoch or step); delete it to repeat the stage"))
    if at.epoch or at.step:
        where = f"after step {at.step} of epoch {at.epoch + 1}" if at.step else f"after epoch {at.epoch}"
        ctx.log(f"{name}: resuming {where} of {config.epochs}")

    def check_finite(loss: Tensor | float) -> None:
        """SbsError before a checkpoint if the weights are not finite; the loss may still be finite then."""
        whole = torch.stack([parameter.detach().isfinite().all() for parameter in model.parameters()]).all()
        if math.isfinite(loss) and whole:
            return
        found = "a weight is not finite" if math.isfinite(loss) else f"the loss is {float(loss)}"
        # Every rank gets here: all have the same loss and weights.
        ctx.ranks.stop(
            SbsError(
                f"{name}: {found} in epoch {at.epoch + 1}; the last good checkpoint is kept: repeat this stage with "
                f"--resume and a smaller --{name}.lr (now {config.lr})"
            )
        )

    with ctx.progress(name, config.epochs * steps, at.epoch * steps + at.step) as advance:
        for epoch in range(at.epoch, config.epochs):
            if config.patience and best.payload and epoch - 1 - best.epoch >= config.patience:
                ctx.log(f"{name}: no better validation score for {config.patience} epochs; stopping early")
                break
            seed = epoch_seed(ctx.config.seed, name, epoch)
            torch.manual_seed(seed)
            model.train()
            for index, batches in enumerate(ctx.feed.steps(seed, steps, first=at.step), at.step):
                _set_rates(optimizers, peaks, (epoch * steps + index) / (config.epochs * steps))
                torch.manual_seed(epoch_seed(seed, f"rank {ctx.ranks.rank}", index))
                _add(at.totals, training.step(batches, epoch * steps + index))
                at.step = index + 1
                advance()
                if at.step < steps and (checkpoint.due or at.step % CHECK_EVERY == 0):
                    check_finite(at.totals["loss"] / at.step)
                    if checkpoint.due:
                        checkpoint.save(at)
            scalars = {name: float(total) / steps for name, total in at.totals.items()}
            check_finite(scalars["loss"])
            scalars |= training.end_epoch(epoch, dict(scalars))
            check_finite(scalars.get("val_loss", 0.0))
            _log_epoch(ctx, name, epoch, config.epochs, scalars)
            at = Position(epoch=epoch + 1)
            checkpoint.save(at)
    return checkpoint.earlier_s


def evaluate(ctx: Context, model: nn.Module, split: str) -> Metrics:
    """The task's metrics of a model over a split, the score first, equal on all ranks; the model stays in eval mode."""
    found = ctx.feed.evaluate(model.eval(), split)
    return ctx.ranks.on_first(lambda: found)


def validated(metrics: Metrics) -> Scalars:
    """The scalars of a validation: the score by its name, and the loss where the task gives one."""
    name, score = score_of(metrics)
    return {f"val_{name}": score} | ({f"val_{LOSS}": metrics[LOSS]} if LOSS in metrics else {})


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
    for example in ctx.feed.examples(seed, batches):
        example.run(model)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    ctx.ranks.average_([s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None])
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


def _add(totals: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        # Totals from a checkpoint lie on the CPU.
        totals[name] = totals.get(name, torch.zeros_like(value)).to(value.device) + value.detach()


def _log_epoch(ctx: Context, stage: str, epoch: int, epochs: int, scalars: Scalars) -> None:
    ctx.scalars({f"{stage}/{name}": value for name, value in scalars.items()}, epoch)
    if (epoch + 1) % max(1, epochs // 10) == 0 or epoch + 1 == epochs:
        hidden = ("flips", f"val_{LOSS}")
        text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items() if name not in hidden)
        ctx.log(f"{stage} {epoch + 1}/{epochs}  {text}")
