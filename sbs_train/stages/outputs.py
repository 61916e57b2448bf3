"""Ranges of the outputs of quantized layers and of sums, for the plan: from real inputs, with the final weights and
clip values.

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
from sbs_train.contract.plan import AddPlan, ChannelGroup, OutputRange, Plan
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.quant.folding import folded_affine
from sbs_train.quant.interception import Place, intercept_additions
from sbs_train.stages.plans import mask_of


@torch.no_grad()
def with_ranges(network: Network, plan: Plan, batches: Iterable[Example], config: CalibrateConfig) -> Plan:
    """The plan with the ranges of every quantized layer's output behind its BatchNorm, and of every quantized
    addition's sum, over the channels that the plan keeps.

    Args:
        network: is frozen to the plan.
        batches: inputs, on the network's device.

    Raises:
        SbsError: an output or a sum is not finite.
    """
    seen: dict[str, ranges.Samples] = {}
    sums: dict[Place, ranges.Samples] = {place: ranges.Samples() for place in network.adds.places if plan.adds}

    def update(samples: ranges.Samples, x: Tensor, name: str) -> None:
        try:
            samples.update(x.float().cpu().numpy())
        except ValueError as error:
            raise SbsError(f"the output of {name}: {error}; check the weights and the inputs") from error

    def watch(name: str, folded: Callable[[Tensor], Tensor], kept: Tensor, axis: int) -> Any:
        def hook(_: nn.Module, args: Any, y: Tensor) -> None:
            update(seen.setdefault(name, ranges.Samples()), folded(y).index_select(axis, kept), name)

        return hook

    def add(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        operands = network.adds.quantized(network.adds.places.index(place), lhs, rhs)
        update(sums[place], operands[0] + operands[1], place.name)
        return operands

    was_training, quantized_adds = network.model.training, network.adds.enabled
    network.model.eval()
    with ExitStack() as stack:
        for row in plan.layers:
            axis, group = -1 if row.kind == "linear" else 1, plan.group(row.group_out)
            if len(group.kept) < group.size:
                last = network.model.get_submodule(network.batchnorms.get(row.name, row.name))
                stack.callback(last.register_forward_hook(_without(group, axis)).remove)
            if row.quantized:
                kept = torch.tensor(group.kept, device=network.layers[row.name].weight.device)
                hook = watch(row.name, _folded(network, row.name, axis), kept, axis)
                # Before all other hooks, and before an activation that changes the output in place.
                stack.callback(network.layers[row.name].register_forward_hook(hook, prepend=True).remove)
        if sums:
            network.adds.enabled = False  # `add` does their work, and sees what they add
            stack.enter_context(intercept_additions(network.model, add, sums))
        for example in batches:
            example.run(network.model)
    network.model.train(was_training)
    network.adds.enabled = quantized_adds
    found = {name: _range(samples, config) for name, samples in seen.items()}
    outputs = [
        OutputRange(name=n.name, low=found[n.name][0], high=found[n.name][1]) for n in plan.layers if n.name in found
    ]
    ends = [_range(samples, config) for samples in sums.values()]
    adds = [
        AddPlan(**{**row.model_dump(), "low": low, "high": high})
        for row, (low, high) in zip(plan.adds, ends, strict=True)
    ]
    return Plan(**{**dict(plan), "ranges": outputs, "adds": adds})


def _without(group: ChannelGroup, axis: int) -> Any:
    """A hook that sets dropped channels to 0, so that sums lack them; layers that read them ignore them anyway."""

    def hook(_: nn.Module, args: Any, y: Tensor) -> Tensor:
        mask_C = mask_of(group).to(y)
        return y * mask_C.view([-1 if index == axis % y.dim() else 1 for index in range(y.dim())])

    return hook


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
