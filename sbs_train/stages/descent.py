"""One step of gradient descent on a task's loss, for a batch that lies in parts: on several ranks, and on each of
them in micro-batches (`--accumulate`).

The result is that of the whole batch in one process, up to rounding, except where a network looks at the other samples
of its batch: BatchNorm normalises by the statistics of one micro-batch of one rank, or of a micro-batch on all ranks
with `--sync-batchnorm`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from sbs_train.network.network import Network
from sbs_train.stages.context import Context
from sbs_train.stages.teacher import Taught
from sbs_train.tasks.protocol import Batch

PLAIN_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Descent:
    """A network and its optimizer, set up to train on all ranks; made by `descent`."""

    def __init__(self, ctx: Context, network: Network, optimizer: Optimizer, teacher: nn.Module | None = None) -> None:
        self._ctx, self._network, self._teacher = ctx, network, teacher
        self._model, self.optimizer = ctx.fabric.setup(network.model, optimizer)
        norms = [module for module in network.model.modules() if isinstance(module, _NormBase)]
        statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
        self._statistics = [value for value in statistics if value is not None]

    def step(
        self,
        parts: Sequence[Batch],
        *,
        penalty: Tensor | None = None,
        before_part: Callable[[int], None] = lambda start: None,
    ) -> Tensor:
        """Take one step; the mean loss (0-d) over the batch of all ranks.

        Args:
            parts: this rank's micro-batches; one with more samples weighs more.
            penalty: a term to add to the loss, once.
            before_part: called before each micro-batch's forward pass with its start.
        """
        self.optimizer.zero_grad()
        counts = [self._ctx.feed.samples(part) for part in parts]
        losses: list[Tensor] = []
        start, whole = 0, sum(counts)
        for part, count in zip(parts, counts, strict=True):
            before_part(start)
            last = len(losses) + 1 == len(parts)
            losses.append(self._backward(part, count / whole, penalty if not losses else None, last=last))
            start += count
        self.optimizer.step()
        self._network.clamp_clips()
        loss = torch.stack(losses).sum()
        self._ctx.ranks.average_([loss, *self._statistics])
        return loss

    def _backward(self, part: Batch, share: float, penalty: Tensor | None, *, last: bool) -> Tensor:
        # Ranks exchange gradients once a step. Micro-batches share the graph of the rule's gates, which must therefore
        # outlive all but the last; the rest of the graph ends with this function's variables.
        with self._ctx.fabric.no_backward_sync(self._model, enabled=not last):
            loss = self._loss(part) * share
            total = loss if penalty is None else loss + penalty
            self._ctx.fabric.backward(total, retain_graph=not last)
        return loss.detach()

    def _loss(self, part: Batch) -> Tensor:
        """The task's loss, and the distance to the teacher's outputs where there is a teacher."""
        task = self._ctx.feed.task
        if self._teacher is None:
            return task.loss(self._model, part)
        taught = Taught(self._model, self._teacher)
        loss = task.loss(taught, part)
        return loss + self._ctx.config.teacher_weight * torch.stack(taught.distances).mean()


@contextmanager
def descent(
    ctx: Context, network: Network, optimizer: Optimizer, teacher: nn.Module | None = None
) -> Iterator[Descent]:
    """Set a network up for training, by a teacher's outputs as well if given; the changes are undone at the end."""
    with ExitStack() as undo:
        if ctx.config.sync_batchnorm:
            undo.enter_context(_synchronised(network.model))
        if ctx.ranks.world > 1:
            undo.enter_context(_without_gradients(_unused(ctx, network)))
        yield Descent(ctx, network, optimizer, teacher)


@contextmanager
def _without_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _unused(ctx: Context, network: Network) -> list[nn.Parameter]:
    """Parameters that the loss does not depend on, such as the clip values of a float network.

    Ranks wait for the gradients of all parameters that require one, so these parameters must not.
    """
    model = network.model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        ctx.feed.task.loss(model, ctx.feed.example(2)), parameters, allow_unused=True
    )
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@contextmanager
def _synchronised(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm normalises over the samples of all ranks; the replaced layers share their state."""
    norms = {name: module for name, module in model.named_modules() if type(module) in PLAIN_BATCHNORMS}
    for name, norm in norms.items():
        model.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for name, norm in norms.items():
            model.set_submodule(name, norm)
