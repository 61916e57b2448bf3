"""Run batches through a model and sample the inputs of its layers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from calib.calls import argument
from calib.ranges import Samples

T = TypeVar("T")


@torch.no_grad()
def collect_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[T],
    run: Callable[[nn.Module, T], Any] = lambda model, x: model(x),
) -> dict[str, Samples]:
    """Values of the first input of every layer, by name, over all batches; the model runs in eval mode.

    `run` runs the model on a batch; a caller can observe more than layers there.
    """
    samples = {name: Samples() for name in layers}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            try:
                samples[name].update(argument(args, kwargs).detach().float().cpu().numpy())
            except ValueError as error:
                raise ValueError(f"the input of {name}: {error}") from error

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for x in batches:
            run(model, x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in was_training.items():
            module.training = training
    return samples
