"""Ranges of the outputs of quantized layers, for the plan: from real inputs, with the final weights and clip values.

Shapes: O output channels.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from calib import ranges
from sbs_train.contract.config import CalibrateConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import CODES
from sbs_train.contract.plan import OutputPlan, Plan
from sbs_train.network.network import Network
from sbs_train.quant.folding import folded_affine


@torch.no_grad()
def output_ranges(network: Network, plan: Plan, batches: Iterable[Tensor], config: CalibrateConfig) -> list[OutputPlan]:
    """The range of every quantized layer's output behind its BatchNorm, over the channels that the plan keeps.

    Args:
        network: is frozen to the plan.
        batches: inputs x_NCHW, on the network's device.

    Raises:
        SbsError: an output is not finite.
    """
    seen: dict[str, ranges.Samples] = {}

    def watch(name: str, folded: Callable[[Tensor], Tensor], kept: Tensor, axis: int) -> Any:
        def hook(_: nn.Module, args: Any, y: Tensor) -> None:
            values = folded(y).index_select(axis, kept).float().cpu().numpy()
            try:
                seen.setdefault(name, ranges.Samples()).update(values)
            except ValueError as error:
                raise SbsError(f"the output of {name}: {error}; check --weights and --data") from error

        return hook

    was_training = network.model.training
    network.model.eval()
    with ExitStack() as stack:
        for row in plan.layers:
            if not row.quantized:
                continue
            axis = -1 if row.kind == "linear" else 1
            kept = torch.tensor(plan.group(row.group_out).kept, device=network.layers[row.name].weight.device)
            hook = watch(row.name, _folded(network, row.name, axis), kept, axis)
            # Before all other hooks, and before an activation that changes the output in place.
            stack.callback(network.layers[row.name].register_forward_hook(hook, prepend=True).remove)
        for x_NCHW in batches:
            network.model(x_NCHW)
    network.model.train(was_training)
    found = {name: _range(samples, config) for name, samples in seen.items()}
    return [
        OutputPlan(name=n.name, low=found[n.name][0], high=found[n.name][1]) for n in plan.layers if n.name in found
    ]


def _folded(network: Network, name: str, axis: int) -> Callable[[Tensor], Tensor]:
    """What the layer folded with its BatchNorm computes, from what the layer alone does."""
    layer, norm_name = network.layers[name], network.batchnorms.get(name)
    if norm_name is None:
        return lambda y: y
    # As `factor * (W x) + bias`, whatever else the BatchNorm's module does: timm's applies the activation too.
    factor_O, bias_O = folded_affine(layer, network.model.get_submodule(norm_name))
    own = layer._parameters["bias"]
    bias_O = bias_O if own is None else bias_O - factor_O * own.double()

    def apply(y: Tensor) -> Tensor:
        shape = [-1 if index == axis % y.dim() else 1 for index in range(y.dim())]
        return y * factor_O.to(y.dtype).view(shape) + bias_O.to(y.dtype).view(shape)

    return apply


def _range(samples: ranges.Samples, config: CalibrateConfig) -> tuple[float, float]:
    """Ends of a range, found by the method of the settings; zeros alone are exact in any range."""
    low, high = min(samples.minimum, 0.0), max(samples.maximum, 0.0)
    if config.method == "mse":
        low, high = ranges.mse_range(samples, CODES)
    elif config.method == "percentile":
        most = ranges.percentile(samples, config.percentile)
        low, high = max(low, -most), min(high, most)
    return (low, high) if low < high else (0.0, 1.0)
