"""What `profile-device` prints for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sbs_deploy.report import units
from sbs_train.contract.device import DeviceModel

if TYPE_CHECKING:
    from rich.table import Table


def device_table(device: DeviceModel) -> "Table":
    """One line a network."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for name in ("model", "input", "layers", "dense FP32", "dense INT8", "speed-up", "in layers"):
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
        )
    return table


def summary(device: DeviceModel, wanted: Sequence[str]) -> list[str]:
    """In words: how good the model is, and what is missing."""
    held = device.held_out
    found = [network.model for network in device.networks]
    lines = [
        f"{device.target} on {device.device}: {len(device.surfaces)} surfaces, channels in steps of {device.align}",
        f"error at channels that were not used: layers {held.median_error:.1%} (median) and {held.p90_error:.1%} (p90) "
        f"of {held.points} points, whole networks {held.network_error:.1%} (median of {held.networks})",
    ]
    missing = [name for name in wanted if name not in found]
    if missing:
        lines.append(f"the time limit left out {', '.join(missing)}; run the same command again to go on")
    return lines
