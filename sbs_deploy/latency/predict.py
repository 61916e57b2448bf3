"""What a plan takes on a device that `profile-device` measured. No torch: the search pays with the same arithmetic."""

import numpy as np

from sbs_deploy.latency.synthetic import owners_that_differ
from sbs_train.contract.device import COARSE_BITS, DeviceModel, NetworkCost, Step
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
    bits = {layer.name: layer.bits_a for layer in plan.layers}
    owners = owners_that_differ(network.shared, bits)
    steps = [*network.layers, *network.others]
    chosen = network.model_copy(
        update={
            "layers": [_as_read(step, owners, bits) for step in network.layers],
            "others": [_as_read(step, owners, bits) for step in network.others],
        }
    )
    charged = {group.id: _charged(len(group.kept), group.size, device.align) for group in plan.groups}
    found = device_cost(device, chosen, list(planned))
    followed = [planned[name] for name in found.others]
    ends_in = [charged[layer.group_in] for layer in plan.layers] + [charged[layer.group_out] for layer in followed]
    ends_out = [charged[layer.group_out] for layer in (*plan.layers, *followed)]
    no_bits = np.zeros(len(ends_in))
    ms = found.latency.of(np.array(ends_in), np.array(ends_out), no_bits, no_bits, slice(None))
    names = [*planned, *(step.name for step in steps if step.follows in planned)]
    rest = sum(device.surfaces[step.surface].ms[-1][-1] for step in chosen.others if step.follows is None)
    return dict(zip(names, ms.tolist(), strict=True)) | {"the rest": network.scale * rest}


def _as_read(step: Step, owners: set[str], bits: dict[str, int]) -> Step:
    """The step on the surface that applies: another one for a coarse input, or where readers of its output differ."""
    surface = step.split if (step.follows or step.name) in owners else None
    if step.coarse is not None and bits[step.name] <= COARSE_BITS:
        surface = step.coarse
    return step if surface is None else step.model_copy(update={"surface": surface})


def _charged(kept: int, size: int, align: int) -> float:
    """The part of a group's channels that the device charges for: up to the next multiple of its alignment."""
    return min(size, -(-kept // align) * align) / size
