"""What a task is: the five methods that a user writes, and what a task may offer besides.

Stages ask a task alone: what a batch holds, what the network answers and what is right are the task's business.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sbs_train.contract.errors import SbsError

Batch = Any
"""What `train_batches` gives: whatever the task's own methods understand."""
Inputs = Any
"""What a network gets of a batch: a tensor, a tuple (positional) or a dict (by keyword) of tensors."""
Model = Callable[..., Any]
Metrics = Mapping[str, float]
LOSS = "loss"
"""The metric that, where a task gives it, decides between plans: it tells more plans apart than a score does."""


@runtime_checkable
class Task(Protocol):
    """What a job needs to know of a problem."""

    def train_batches(self, seed: int) -> Iterable[Batch]:
        """One epoch, in an order that depends on `seed` alone. A length (`len`) saves one pass that counts them."""

    def inputs(self, batch: Batch) -> Inputs:
        """What the model gets of a batch; axis 0 of its first tensor is the sample."""

    def loss(self, model: Model, batch: Batch) -> Tensor:
        """A floating tensor without axes, a mean over the batch's samples; calls `model` once."""

    def evaluate(self, model: Model, split: str) -> Metrics:
        """Metrics over a split: "val" chooses, "test" reports. The first entry is the score, larger is better; the
        entry `loss`, where there is one, also decides between plans. `model` is any callable."""


def as_task(value: object, what: str) -> Task:
    """The value, if it has the methods of a task; SbsError, which `what` begins ("task is"), if it lacks one."""
    if isinstance(value, type):
        raise SbsError(f"{what} the class {value.__name__}; give an object of it")
    if not isinstance(value, Task):
        lacks = next(name for name in ("train_batches", "inputs", "loss", "evaluate") if not hasattr(value, name))
        raise SbsError(
            f"{what} {type(value).__name__}, which has no {lacks}; a task has train_batches, inputs, loss and evaluate"
        )
    return value


@dataclass(frozen=True, kw_only=True)
class Share:
    """This process's share of a task's work: one of `world` processes (ranks) that train together."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """The sum of a tensor over all ranks."""


@runtime_checkable
class Divided(Task, Protocol):
    """A task that divides its own batches among ranks and micro-batches.

    Other tasks need not: every rank then gets every `world`-th of their batches, a step takes as many batches as there
    are micro-batches, and every rank evaluates all of a split.
    """

    @property
    def batch_size(self) -> int:
        """Samples of a batch of all ranks."""

    def steps_per_epoch(self) -> int:
        """Batches of all ranks in one epoch."""

    def shared(self, share: Share) -> Self:
        """This task for one rank: its batches lie on the share's device, its metrics are those of all ranks."""

    def batches(self, seed: int, steps: int, *, first: int = 0) -> Iterator[Batch]:
        """This rank's part of the batches `first` to `steps` of the order of `seed`, which may exceed an epoch."""

    def parts(self, batch: Batch, count: int) -> Sequence[Batch]:
        """A rank's batch in `count` micro-batches."""

    def sample_losses(self, model: Model, batches: int | None) -> Tensor:
        """`loss_N` of this rank's samples in the first batches of the validation split, or in all."""

    def example(self, samples: int) -> Batch:
        """A batch to try a network on before any data is read."""


def score_of(metrics: Metrics) -> tuple[str, float]:
    """Name and value of the score: the first entry, larger is better; SbsError if a task gives none."""
    name, value = _first(metrics)
    if not math.isfinite(value):
        raise SbsError(f"the score {name} that the task's evaluate() gives is {value}, and must be a finite number")
    return name, value


def _first(metrics: Metrics) -> tuple[str, float]:
    name, value = next(iter(metrics.items()), (LOSS, 0.0))
    if name == LOSS:
        raise SbsError(
            "the first entry of a task's evaluate() must be its score, larger is better, and not its loss; give "
            "{'score': -loss, 'loss': loss} if there is nothing else"
        )
    return name, value


def measure_of(metrics: Metrics) -> tuple[str, float]:
    """Name and value of what tells plans apart, smaller is better: the loss, or else the negative score."""
    name, value = _first(metrics)
    return (LOSS, metrics[LOSS]) if LOSS in metrics else (f"-{name}", -value)


def require_whole(task: Task, model: nn.Module) -> None:
    """SbsError for a task whose `exported(model)` is a part of the model, or something around it."""
    found = getattr(task, "exported", None)
    if found is not None and found(model) is not model:
        raise SbsError(
            f"{type(task).__name__}.exported returns another module, which cannot be deployed yet; let the model "
            f"itself return what shall be deployed, and leave exported out"
        )
