"""What `profile-device` prints for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_deploy.measure import units
from sbs_train.contract.device import DeviceModel, HeldOut

if TYPE_CHECKING:
    from rich.table import Table

CERTAIN_SCALE = (0.8, 1.25)
"""Beyond these a whole network pays much that none of its layers shows, or much less than they do together."""


def device_table(device: DeviceModel) -> "Table":
    """One line a network."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for name in ("model", "input", "layers", "dense FP32", "dense INT8", "speed-up", "in layers", "scale"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for network in device.networks:
        steps = network.layers, network.others
        layers, others = (sum(device.surfaces[step.surface].ms[-1][-1] for step in some) for some in steps)
        table.add_row(
            Text(network.model),
            "x".join(map(str, network.input)),
            str(len(network.layers)),
            units.milliseconds(network.fp32_ms),
            units.milliseconds(network.quantized_ms),
            units.times(network.fp32_ms / network.quantized_ms),
            units.percent(100 * layers / (layers + others)),
            units.times(network.scale),
        )
    return table


def summary(device: DeviceModel, wanted: Sequence[str]) -> list[str]:
    """In words: how good the model is, what to be careful about, and what is missing."""
    found = [network.model for network in device.networks]
    images = "one image" if device.batch == 1 else f"a batch of {device.batch} images"
    scales = ", ".join(f"{one.model} {units.times(one.scale)}" for one in device.networks)
    added = device.node_overhead_us
    lines = [
        f"{device.target} on {device.device}: {len(device.surfaces)} surfaces, channels in steps of {device.align}; "
        f"milliseconds are those of {images}",
        f"what the profiler adds to a node: {'not known' if added is None else f'{added:.1f} us, taken out'}",
        f"scale, what a network as a whole takes over the sum of its layers' times: {scales}",
        f"error at channels that were not used: {_errors(device.held_out)}",
    ]
    low, high = CERTAIN_SCALE
    uncertain = [network.model for network in device.networks if not low <= network.scale <= high]
    if uncertain:
        lines.append(
            f"warning: the scale of {', '.join(uncertain)} is not within {low:g} to {high:g}: together the layers take "
            f"much more or less than the profiler says of each, and predictions are less certain; measure with a "
            f"larger --batch or a larger network"
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        lines.append(f"the time limit left out {', '.join(missing)}; run the same command again to go on")
    return lines


def _errors(held: HeldOut) -> str:
    layers = f"layers {held.median_error:.1%} (median) and {held.p90_error:.1%} (p90) of {held.points} points"
    wholes = f"whole networks from end to end {held.network_error:.1%} (median of {held.networks})"
    found = [text for text, count in ((layers, held.points), (wholes, held.networks)) if count]
    return ", ".join(found) or "no point was held out"
