"""A network's layers on the surfaces of device.json: what a search pays in milliseconds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sbs_train.contract.cost import Latency
from sbs_train.contract.device import DeviceModel, NetworkCost, Step, Surface

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DeviceCost:
    """What a device charges for one network."""

    latency: Latency
    """Of the searchable layers in their order, then of `others`."""
    others: tuple[str, ...]
    """For everything else that gets cheaper with channels: the layer whose output channels it has."""
    align: int
    """The device charges for channels up to the next multiple of this."""


def device_cost(device: DeviceModel, network: NetworkCost, layers: Iterable[str]) -> DeviceCost:
    """Of `layers`, the ones that can be pruned or quantized; all others count as they are in the dense network."""
    by_name = {step.name: step for step in network.layers}
    paid = [by_name[name] for name in layers]
    names = {step.name for step in paid}
    followers = [step for step in network.others if step.follows in names]
    constant = [step for step in network.layers if step.name not in names]
    constant += [step for step in network.others if step.follows not in names]
    surfaces = [device.surfaces[step.surface] for step in (*paid, *followers)]
    rows, columns = (max(len(getattr(s, end)) for s in surfaces) for end in ("channels_in", "channels_out"))
    return DeviceCost(
        latency=Latency.of_surfaces(
            np.stack([_knots(surface.channels_in, rows) for surface in surfaces]),
            np.stack([_knots(surface.channels_out, columns) for surface in surfaces]),
            network.scale * np.stack([_padded(surface, rows, columns) for surface in surfaces]),
            constant=network.scale * sum(_dense_ms(device, step) for step in constant),
            reference=network.fp32_ms,
        ),
        others=tuple(step.follows for step in followers if step.follows is not None),
        align=device.align,
    )


def _knots(channels: list[int], count: int) -> Floats:
    """Fractions of the dense number, with knots below 0 in front where there are too few."""
    fractions = np.asarray(channels, np.float64) / channels[-1]
    return np.concatenate([np.arange(-(count - len(channels)), 0, dtype=np.float64), fractions])


def _padded(surface: Surface, rows: int, columns: int) -> Floats:
    ms = np.asarray(surface.ms, np.float64)
    return np.pad(ms, ((rows - ms.shape[0], 0), (columns - ms.shape[1], 0)), mode="edge")


def _dense_ms(device: DeviceModel, step: Step) -> float:
    return device.surfaces[step.surface].ms[-1][-1]
