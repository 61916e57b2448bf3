"""What is compared: one training step of one method, and the setting all of them share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Missing(Exception):
    """A method that cannot run here; its row in the table is this reason instead of numbers."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, the batch and the device of a comparison."""

    model: str
    width: int
    image: int
    """Height and width of the images in pixels; they have 3 channels."""
    batch: int
    classes: int
    device: torch.device
    optimizer: bool
    """Whether a step updates the weights as well."""

    def data(self) -> tuple[Tensor, Tensor]:
        """(x_NCHW, y_N), random and the same for every method; x lies as convolutions like it best."""
        generator = torch.Generator().manual_seed(0)
        x_NCHW = torch.randn(self.batch, 3, self.image, self.image, generator=generator)
        y_N = torch.randint(0, self.classes, (self.batch,), generator=generator)
        return x_NCHW.to(self.device), y_N.to(self.device)


Loss = Callable[[int], Tensor]
"""Forward pass of the step with this index, the loss included; even and odd steps may differ."""


def nothing() -> None:
    """What a method without extra state does after the optimizer."""


@dataclass(kw_only=True)
class Method:
    """A network in training."""

    name: str
    bits: str
    note: str
    model: nn.Module
    loss: Loss
    finish: Callable[[], None] = nothing
    """What the method does after the weights' optimizer: thresholds, limits, controller."""
    optimizer: torch.optim.Optimizer | None = None
    now_and_then: Callable[[], None] = nothing
    """What happens in one of `every` steps; `step` leaves it out."""
    every: int = 1

    def step(self, index: int) -> None:
        """One training step, everything it takes."""
        self.model.zero_grad()
        self.loss(index).backward()  # type: ignore[no-untyped-call]
        if self.optimizer is not None:
            self.optimizer.step()
        self.finish()


def method(name: str, bits: str, note: str, model: nn.Module, setting: Setting, loss: Loss | None = None) -> Method:
    """A method whose loss is the cross-entropy of `model` unless given, with the setting's optimizer."""
    x_NCHW, y_N = setting.data()
    optimizer = None
    if setting.optimizer:
        # A small rate: the weights of all methods stay near where they started, so no step gets unusual values.
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def cross_entropy(index: int) -> Tensor:
        return F.cross_entropy(model(x_NCHW), y_N)

    return Method(name=name, bits=bits, note=note, model=model, loss=loss or cross_entropy, optimizer=optimizer)


def inputs_of(model: nn.Module, layers: dict[str, nn.Module], x_NCHW: Tensor) -> dict[str, tuple[bool, float]]:
    """(whether it takes negative values, largest magnitude) of every layer's input, from one pass in training mode.

    The statistics of normalisation layers move with that pass; training does not read them.
    """
    found: dict[str, tuple[bool, float]] = {}

    def look(name: str, x: Tensor) -> None:
        found[name] = (bool(x.min() < 0), float(x.abs().max()))

    hooks = [layer.register_forward_pre_hook(lambda _, x, n=name: look(n, x[0])) for name, layer in layers.items()]
    with torch.no_grad():
        model.train()(x_NCHW)
    for hook in hooks:
        hook.remove()
    return found
