"""One step of gradient descent on the cross-entropy, for a batch that lies in parts: on several ranks, and on each of
them in micro-batches (`--accumulate`).

The result is that of the whole batch in one process, up to rounding, except where a network looks at the other images
of its batch: BatchNorm normalises by the statistics of one micro-batch of one rank, or of a micro-batch on all ranks
with `--sync-batchnorm`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from sbs_train.example import floats_of
from sbs_train.network.network import Network
from sbs_train.stages.context import Context

PLAIN_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Descent:
    """A network and its optimizer, set up to train on all ranks; made by `descent`."""

    def __init__(self, ctx: Context, network: Network, optimizer: Optimizer) -> None:
        self._ctx, self._network = ctx, network
        self._model, self.optimizer = ctx.fabric.setup(network.model, optimizer)
        norms = [module for module in network.model.modules() if isinstance(module, _NormBase)]
        statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
        self._statistics = [value for value in statistics if value is not None]

    def step(
        self,
        x_NCHW: Tensor,
        y_N: Tensor,
        *,
        penalty: Tensor | None = None,
        before_part: Callable[[int, int], None] = lambda start, images: None,
    ) -> Tensor:
        """Take one step; the mean cross-entropy (0-d) over the batch of all ranks.

        Args:
            x_NCHW: this rank's part of the batch.
            penalty: a term to add to the loss, once.
            before_part: called before each micro-batch's forward pass with its start and its number of images.
        """
        self.optimizer.zero_grad()
        parts = self._ctx.config.accumulate
        pairs = list(zip(x_NCHW.chunk(parts), y_N.chunk(parts), strict=True))
        losses: list[Tensor] = []
        start = 0
        for x, y in pairs:
            before_part(start, len(x))
            share, last = len(x) / len(x_NCHW), start + len(x) == len(x_NCHW)
            losses.append(self._backward(x, y, share, None if start else penalty, last=last))
            start += len(x)
        self.optimizer.step()
        self._network.clamp_clips()
        loss = torch.stack(losses).sum()
        self._ctx.ranks.average_([loss, *self._statistics])
        return loss

    def _backward(self, x_NCHW: Tensor, y_N: Tensor, share: float, penalty: Tensor | None, *, last: bool) -> Tensor:
        # Ranks exchange gradients once a step. Micro-batches share the graph of the rule's gates, which must therefore
        # outlive all but the last; the rest of the graph ends with this function's variables.
        with self._ctx.fabric.no_backward_sync(self._model, enabled=not last):
            loss = F.cross_entropy(self._model(x_NCHW), y_N) * share
            total = loss if penalty is None else loss + penalty
            self._ctx.fabric.backward(total, retain_graph=not last)
        return loss.detach()


@contextmanager
def descent(ctx: Context, network: Network, optimizer: Optimizer) -> Iterator[Descent]:
    """Set a network up for training; the changes are undone at the end."""
    with ExitStack() as undo:
        if ctx.config.sync_batchnorm:
            undo.enter_context(_synchronised(network.model))
        if ctx.ranks.world > 1:
            undo.enter_context(_without_gradients(_unused(ctx, network)))
        yield Descent(ctx, network, optimizer)


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
    """Parameters that the output does not depend on, such as the clip values of a float network.

    Ranks wait for the gradients of all parameters that require one, so these parameters must not.
    """
    model, example = network.model.eval(), network.example.to(ctx.fabric.device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.stack([y.sum() for y in floats_of(example.run(model))]).sum()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(total, parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@contextmanager
def _synchronised(model: nn.Module) -> Iterator[None]:
    """Within the block, BatchNorm normalises over the images of all ranks; the replaced layers share their state."""
    norms = {name: module for name, module in model.named_modules() if type(module) in PLAIN_BATCHNORMS}
    for name, norm in norms.items():
        model.set_submodule(name, nn.SyncBatchNorm.convert_sync_batchnorm(norm))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for name, norm in norms.items():
            model.set_submodule(name, norm)
