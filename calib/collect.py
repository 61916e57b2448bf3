"""Run batches through a model and sample the inputs of its layers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calib.calls import argument
from calib.ranges import Samples


@torch.no_grad()
def collect_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Tensor],
    run: Callable[[nn.Module, Tensor], Any] = lambda model, x: model(x),
) -> dict[str, Samples]:
    """Values of the first input of every layer, by name, over all batches (x_NCHW); the model runs in eval mode.

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
    was_training = model.training
    model.eval()
    try:
        for x in batches:
            run(model, x)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return samples
