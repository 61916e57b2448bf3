"""A network's layers on the surfaces of device.json: what a search pays in milliseconds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.detour import CoarseInput, Detour, ReadersDiffer
from sbs_train.contract.device import COARSE_BITS, DeviceModel, NetworkCost, SharedTensor, Step, Surface
from sbs_train.contract.latency import Latency, Surfaces

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DeviceCost:
    """What a device charges for one network."""

    latency: Latency
    """Of the searchable layers in their order, then of `others`."""
    others: tuple[Step, ...]
    """Everything else that gets cheaper with channels."""
    align: int
    """The device charges for channels up to the next multiple of this."""


def device_cost(device: DeviceModel, network: NetworkCost, layers: Iterable[str]) -> DeviceCost:
    """Of `layers`, the ones that can be pruned or quantized; all others count as they are in the dense network."""
    by_name = {step.name: step for step in network.layers}
    position = {name: index for index, name in enumerate(layers)}
    paid = [by_name[name] for name in position]
    others = [step for step in network.others if step.follows in position]
    constant = [step for step in network.layers if step.name not in position]
    constant += [step for step in network.others if step.follows not in position]
    detours = list(_detours([*paid, *others], network.shared, position))
    return DeviceCost(
        latency=Latency(
            items=_surfaces([device.surfaces[step.surface] for step in (*paid, *others)], network.scale),
            detours=tuple(detour for detour, _ in detours),
            instead=_surfaces([device.surfaces[surface] for _, surface in detours], network.scale),
            constant=network.scale * sum(device.surfaces[step.surface].ms[-1][-1] for step in constant),
            reference=network.fp32_ms,
        ),
        others=tuple(others),
        align=device.align,
    )


def _detours(
    items: Sequence[Step], shared: Sequence[SharedTensor], position: dict[str, int]
) -> Iterable[tuple[Detour, int]]:
    """Every detour, and its surface."""
    for item, step in enumerate(items):
        if step.coarse is not None and step.name in position:
            yield Detour(item=item, causes=(CoarseInput(layer=position[step.name], bits=COARSE_BITS),)), step.coarse
        owned = [tensor for tensor in shared if (step.follows or step.name) in tensor.owners]
        if step.split is not None and owned:
            yield Detour(item=item, causes=tuple(_readers(tensor, position) for tensor in owned)), step.split


def _readers(tensor: SharedTensor, position: dict[str, int]) -> ReadersDiffer:
    chosen = tuple(position[name] for name in tensor.readers if name in position)
    fixed = tensor.added or len(chosen) < len(tensor.readers)
    return ReadersDiffer(layers=chosen, others=frozenset({INT8_BITS} if fixed else ()))


def _surfaces(surfaces: Sequence[Surface], scale: float) -> Surfaces:
    """All on as many knots as the one with the most: further ones lie below 0, with the values of the first."""
    rows, columns = (
        max((len(getattr(s, end)) for s in surfaces), default=1) for end in ("channels_in", "channels_out")
    )
    return Surfaces.of(
        np.array([_knots(surface.channels_in, rows) for surface in surfaces]).reshape(-1, rows),
        np.array([_knots(surface.channels_out, columns) for surface in surfaces]).reshape(-1, columns),
        scale * np.array([_padded(surface, rows, columns) for surface in surfaces]).reshape(-1, rows, columns),
    )


def _knots(channels: list[int], count: int) -> Floats:
    """Fractions of the dense number, with knots below 0 in front where there are too few."""
    fractions = np.asarray(channels, np.float64) / channels[-1]
    return np.concatenate([np.arange(-(count - len(channels)), 0, dtype=np.float64), fractions])


def _padded(surface: Surface, rows: int, columns: int) -> Floats:
    ms = np.asarray(surface.ms, np.float64)
    return np.pad(ms, ((rows - ms.shape[0], 0), (columns - ms.shape[1], 0)), mode="edge")
