"""Milliseconds as a cost: surfaces over channels from device.json, interpolated. Pure arithmetic, no framework.

Bits do not change milliseconds: a device that computes in 8 bits takes as long for 2. The search and the prediction
of a plan use the same surfaces.

Shapes: L items that cost something: the searchable layers in order, then the steps that are no layer; I, J measured
points of a surface.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract.cost import computed_channels
from sbs_train.contract.device import DeviceModel, NetworkCost, Step, Surface
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.contract.target import Unit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Surfaces:
    """Values over kept channels: bilinear between measured points, constant below the fewest channels."""

    knots_in: Any
    """`(L, I)` ascending kept fractions of the inputs that were measured; the last is 1."""
    knots_out: Any
    """`(L, J)` ascending kept fractions of the outputs that were measured; the last is 1."""
    first: Any
    """`(L)` value at the fewest channels."""
    more_in: Any
    """`(L, I - 1)` rise of the value from one input knot to the next, at the fewest outputs."""
    more_out: Any
    """`(L, J - 1)` rise of the value from one output knot to the next, at the fewest inputs."""
    more_both: Any
    """`(L, I - 1, J - 1)` rise for both steps together, beyond `more_in` and `more_out`."""

    @classmethod
    def of(cls, knots_in: Floats, knots_out: Floats, values: Floats) -> "Surfaces":
        """Surfaces through measured `values` `(L, I, J)`."""
        return cls(
            knots_in=knots_in,
            knots_out=knots_out,
            first=values[:, 0, 0],
            more_in=np.diff(values[:, :, 0], axis=1),
            more_out=np.diff(values[:, 0, :], axis=1),
            more_both=np.diff(np.diff(values, axis=1), axis=2),
        )

    def at(self, fraction_in: Any, fraction_out: Any, rows: Any = slice(None)) -> Any:
        """Values of the surfaces `rows` at kept fractions; all `(..., rows)`."""
        rise_in, rise_out = _rises(fraction_in, self.knots_in[rows]), _rises(fraction_out, self.knots_out[rows])
        both = (rise_in[..., :, None] * rise_out[..., None, :] * self.more_both[rows]).sum(-1).sum(-1)
        one_way = (rise_in * self.more_in[rows]).sum(-1) + (rise_out * self.more_out[rows]).sum(-1)
        return self.first[rows] + one_way + both


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one network on one device."""

    items: Surfaces
    constant: float
    reference: float
    unit: Unit = "ms"

    def of(self, fraction_in: Any, fraction_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Milliseconds of the items `rows`, all `(..., rows)`. Bits only give the answer its shape."""
        return self.items.at(fraction_in, fraction_out, rows) + 0 * (bits_w * bits_a)


@dataclass(frozen=True, kw_only=True)
class DeviceCost:
    """Cost of one network on one device, for a search."""

    latency: Latency
    others: tuple[Step, ...]
    """The steps that are no searchable layer, in the order of `latency`'s items."""
    align: int
    """Multiple of channels that the device computes in; other counts cost as much as the next multiple."""


def device_cost(device: DeviceModel, network: NetworkCost, layers: Iterable[str]) -> DeviceCost:
    """Cost of a measured network on a device; steps that depend on no layer of `layers` cost as in the dense network.

    Args:
        layers: names of the layers that can be pruned or quantized.
    """
    by_name = {step.name: step for step in network.layers}
    searchable = {name: by_name[name] for name in layers}
    others = [step for step in network.others if step.follows in searchable]
    constant = [step for step in network.layers if step.name not in searchable]
    constant += [step for step in network.others if step.follows not in searchable]
    items = [device.surfaces[step.surface] for step in (*searchable.values(), *others)]
    return DeviceCost(
        latency=Latency(
            items=_surfaces(items, network.scale),
            constant=network.scale * sum(device.surfaces[step.surface].ms[-1][-1] for step in constant),
            reference=network.fp32_ms,
        ),
        others=tuple(others),
        align=device.align,
    )


def network_in(device: DeviceModel, plan: Plan) -> NetworkCost:
    """The measured network that matches a plan; SbsError if the device has no such network."""
    sizes = {group.id: group.size for group in plan.groups}
    layers = {layer.name: (sizes[layer.group_in], sizes[layer.group_out]) for layer in plan.layers}
    return device.network_of(layers, (plan.input.channels, plan.input.height, plan.input.width))


def predicted_ms(device: DeviceModel, network: NetworkCost, plan: Plan) -> float:
    """Predicted milliseconds of one inference of a plan; SbsError if the plan belongs to another network."""
    return float(sum(predicted_steps(device, network, plan).values()))


def predicted_steps(device: DeviceModel, network: NetworkCost, plan: Plan) -> dict[str, float]:
    """Predicted milliseconds of a plan by step, see `steps_at`; SbsError if the plan belongs to another network."""
    planned = {layer.name for layer in plan.layers}
    for step in network.layers:
        if step.name not in planned:
            raise SbsError(f"the plan has no layer {step.name}, which {network.model} has; it is of another network")
    kept = {g.id: computed_channels(len(g.kept), g.size, device.align) / g.size for g in plan.groups}
    return steps_at(device, network, {row.name: (kept[row.group_in], kept[row.group_out]) for row in plan.layers})


def steps_at(device: DeviceModel, network: NetworkCost, ends: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Milliseconds by step of a pruned network: its layers, its other steps, and "the rest".

    Args:
        ends: kept fractions of inputs and of outputs, by layer; other layers keep all their channels.
    """
    found = device_cost(device, network, ends)
    behind = [(ends[step.follows][1],) * 2 for step in found.others if step.follows is not None]
    kept = np.array([*ends.values(), *behind])
    ms = found.latency.of(kept[:, 0], kept[:, 1], 0, 0, slice(None))
    names = [*ends, *(step.name for step in found.others)]
    return dict(zip(names, ms.tolist(), strict=True)) | {"the rest": found.latency.constant}


def _rises(x: Any, knots: Any) -> Any:
    """Position of `x` `(..., L)` in each segment of `knots` `(L, K)`: 0 before it, 1 after; `(..., L, K - 1)`."""
    left, right = knots[..., :-1], knots[..., 1:]
    part = (x[..., None] - left) / (right - left)
    return (abs(part) - abs(part - 1) + 1) / 2


def _surfaces(surfaces: Sequence[Surface], scale: float) -> Surfaces:
    """Surfaces with equal numbers of knots: knots below 0, with the first knot's values, fill the shorter ones."""
    rows, columns = (
        max((len(getattr(s, end)) for s in surfaces), default=1) for end in ("channels_in", "channels_out")
    )
    return Surfaces.of(
        np.array([_knots(surface.channels_in, rows) for surface in surfaces]).reshape(-1, rows),
        np.array([_knots(surface.channels_out, columns) for surface in surfaces]).reshape(-1, columns),
        scale * np.array([_padded(surface, rows, columns) for surface in surfaces]).reshape(-1, rows, columns),
    )


def _knots(channels: list[int], count: int) -> Floats:
    """Channel counts as fractions of the dense count, filled up to `count` with knots below 0 in front."""
    fractions = np.asarray(channels, np.float64) / channels[-1]
    return np.concatenate([np.arange(-(count - len(channels)), 0, dtype=np.float64), fractions])


def _padded(surface: Surface, rows: int, columns: int) -> Floats:
    ms = np.asarray(surface.ms, np.float64)
    return np.pad(ms, ((rows - ms.shape[0], 0), (columns - ms.shape[1], 0)), mode="edge")
