"""What a plan takes on a device that `profile-device` measured. No torch: the search pays with the same arithmetic."""

from collections.abc import Mapping

import numpy as np

from sbs_train.contract.cost import charged_channels
from sbs_train.contract.device import DeviceModel, NetworkCost
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.quant.latency import device_cost


def network_in(device: DeviceModel, plan: Plan) -> NetworkCost:
    """The measured network that a plan is of; SbsError if there is none."""
    sizes = {group.id: group.size for group in plan.groups}
    layers = {layer.name: (sizes[layer.group_in], sizes[layer.group_out]) for layer in plan.layers}
    return device.network_of(layers, (plan.input.channels, plan.input.height, plan.input.width))


def predicted_ms(device: DeviceModel, network: NetworkCost, plan: Plan) -> float:
    """Milliseconds of one inference of a plan, quantized.

    Raises:
        SbsError: the plan is of another network.
    """
    return float(sum(predicted_steps(device, network, plan).values()))


def predicted_steps(device: DeviceModel, network: NetworkCost, plan: Plan) -> dict[str, float]:
    """The same by step: the layers, and what runs behind them."""
    planned = {layer.name: layer for layer in plan.layers}
    for step in network.layers:
        if step.name not in planned:
            raise SbsError(f"the plan has no layer {step.name}, which {network.model} has; it is of another network")
    charged = {
        group.id: charged_channels(len(group.kept), group.size, device.align) / group.size for group in plan.groups
    }
    ends = {layer.name: (charged[layer.group_in], charged[layer.group_out]) for layer in plan.layers}
    return steps_at(device, network, ends, {layer.name: layer.bits_a for layer in plan.layers})


def steps_at(
    device: DeviceModel, network: NetworkCost, ends: Mapping[str, tuple[float, float]], bits: Mapping[str, int]
) -> dict[str, float]:
    """Milliseconds by step of a slim form of a network; layers that are not named keep all their channels.

    Args:
        ends: the parts of its inputs and of its outputs that a layer keeps, by layer.
        bits: of the inputs of these layers.
    """
    found = device_cost(device, network, list(ends))
    followed = [step.follows for step in found.others if step.follows is not None]
    ends_in = np.array([kept_in for kept_in, _ in ends.values()] + [ends[name][1] for name in followed])
    ends_out = np.array([ends[name][1] for name in (*ends, *followed)])
    bits_a = np.array([bits[name] for name in ends])
    ms = found.latency.of(ends_in, ends_out, 0, 0, slice(None))
    items = [detour.item for detour in found.latency.detours]
    for detour, more in zip(
        found.latency.detours, found.latency.of_detours(ends_in[items], ends_out[items]), strict=True
    ):
        ms[detour.item] += more if detour.taken(bits_a) else 0.0
    names = [*ends, *(step.name for step in found.others)]
    return dict(zip(names, ms.tolist(), strict=True)) | {"the rest": found.latency.constant}
