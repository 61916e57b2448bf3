"""Milliseconds as a cost: surfaces over channels from device.json, interpolated. Pure arithmetic, no framework.

A layer runs in INT8 or, if its weights or its input have float bits, in float; fewer bits than 8 do not change its
milliseconds. The search and the prediction of a plan use the same surfaces.

Shapes: L items that cost something: the searchable layers in order, then the layers that are always in float; I, J
measured points of a surface.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sbs_train.contract.cost import FP32_BITS, INT8_BITS, channel_step, computed_channels
from sbs_train.contract.device import DeviceModel, NetworkCost, Surface
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
    """In INT8."""
    float_items: Surfaces
    constant: float
    reference: float
    switch_L: Any
    """Milliseconds of a change of precision before a layer, at any number of channels."""
    switch_all_L: Any
    """Milliseconds that such a change costs besides, in proportion to the kept fraction of the layer's input."""
    follows_L: Any
    """Index of the item before every item; an item that reads the network's input has its own index."""
    unit: Unit = "ms"

    def of(self, fraction_in: Any, fraction_out: Any, bits_w: Any, bits_a: Any, rows: Any) -> Any:
        """Milliseconds of the items `rows`, all `(..., rows)`, without changes of precision."""
        quantized, in_float = (one.at(fraction_in, fraction_out, rows) for one in (self.items, self.float_items))
        return quantized + (in_float - quantized) * is_float(bits_w, bits_a)

    def switches(self, fraction_in: Any) -> Any:
        """Milliseconds `(..., L)` that every item costs besides if the item before it has another precision."""
        return self.switch_L + self.switch_all_L * fraction_in


def is_float(bits_w: Any, bits_a: Any) -> Any:
    """Whether layers run in float: their weights or their inputs have more bits than INT8."""
    return (bits_w > INT8_BITS) | (bits_a > INT8_BITS)


def device_cost(device: DeviceModel, network: NetworkCost, layers: Iterable[str]) -> Latency:
    """Cost of a measured network on a device.

    Args:
        layers: names of the layers that can be pruned or quantized; all others are in float.
    """
    by_name = {step.name: step for step in network.layers}
    searchable = {name: by_name[name] for name in layers}
    steps = [*searchable.values(), *(step for step in network.layers if step.name not in searchable)]
    place = {step.name: index for index, step in enumerate(steps)}
    surfaces = [device.surfaces[step.surface] for step in steps]
    joined = np.array([step.follows is not None for step in steps], np.float64)
    elements = np.array([step.elements for step in steps], np.float64)
    return Latency(
        items=_surfaces(surfaces, [surface.ms for surface in surfaces]),
        float_items=_surfaces(surfaces, [surface.float_ms for surface in surfaces]),
        constant=network.rest_ms,
        reference=network.fp32_ms,
        switch_L=joined * network.switch_us * 1e-3,
        switch_all_L=joined * elements * network.switch_ns * 1e-6,
        follows_L=np.array([place[step.follows or step.name] for step in steps], np.int64),
    )


def network_in(device: DeviceModel, plan: Plan) -> NetworkCost:
    """The measured network that matches a plan; SbsError if the device has no such network."""
    sizes = {group.id: group.size for group in plan.groups}
    layers = {layer.name: (sizes[layer.group_in], sizes[layer.group_out]) for layer in plan.layers}
    return device.network_of(layers, plan.inputs[0].sample)


def predicted_ms(device: DeviceModel, network: NetworkCost, plan: Plan) -> float:
    """Predicted milliseconds of one inference of a plan; SbsError if the plan belongs to another network."""
    return float(sum(predicted_steps(device, network, plan).values()))


def predicted_steps(device: DeviceModel, network: NetworkCost, plan: Plan) -> dict[str, float]:
    """Predicted milliseconds of a plan by layer, see `steps_at`; SbsError if the plan belongs to another network."""
    planned = {layer.name for layer in plan.layers}
    for step in network.layers:
        if step.name not in planned:
            raise SbsError(f"the plan has no layer {step.name}, which {network.model} has; it is of another network")
    kept = {g.id: computed_channels(len(g.kept), g.size, channel_step(g.size)) / g.size for g in plan.groups}
    ends = {row.name: (kept[row.group_in], kept[row.group_out]) for row in plan.layers}
    return steps_at(device, network, ends, {row.name for row in plan.layers if not row.quantized})


def steps_at(
    device: DeviceModel, network: NetworkCost, ends: Mapping[str, tuple[float, float]], in_float: Collection[str]
) -> dict[str, float]:
    """Milliseconds of a pruned network by layer, and of "the rest". A change of precision counts for its reader.

    Args:
        ends: kept fractions of inputs and of outputs, by layer, for all layers.
        in_float: layers in float; all others are INT8.
    """
    cost = device_cost(device, network, ends)
    kept = np.array([*ends.values()])
    bits = np.array([FP32_BITS if name in in_float else INT8_BITS for name in ends])
    ms = cost.of(kept[:, 0], kept[:, 1], bits, bits, slice(None))
    ms = ms + cost.switches(kept[:, 0]) * (bits != bits[cost.follows_L])
    return dict(zip(ends, ms.tolist(), strict=True)) | {"the rest": cost.constant}


def _rises(x: Any, knots: Any) -> Any:
    """Position of `x` `(..., L)` in each segment of `knots` `(L, K)`: 0 before it, 1 after; `(..., L, K - 1)`."""
    left, right = knots[..., :-1], knots[..., 1:]
    part = (x[..., None] - left) / (right - left)
    return (abs(part) - abs(part - 1) + 1) / 2


def _surfaces(surfaces: Sequence[Surface], ms: Sequence[list[list[float]]]) -> Surfaces:
    """Surfaces with equal numbers of knots: knots below 0, with the first knot's values, fill the shorter ones."""
    rows, columns = (
        max((len(getattr(s, end)) for s in surfaces), default=1) for end in ("channels_in", "channels_out")
    )
    return Surfaces.of(
        np.array([_knots(surface.channels_in, rows) for surface in surfaces]).reshape(-1, rows),
        np.array([_knots(surface.channels_out, columns) for surface in surfaces]).reshape(-1, columns),
        np.array([_padded(one, rows, columns) for one in ms]).reshape(-1, rows, columns),
    )


def _knots(channels: list[int], count: int) -> Floats:
    """Channel counts as fractions of the dense count, filled up to `count` with knots below 0 in front."""
    fractions = np.asarray(channels, np.float64) / channels[-1]
    return np.concatenate([np.arange(-(count - len(channels)), 0, dtype=np.float64), fractions])


def _padded(rows_ms: list[list[float]], rows: int, columns: int) -> Floats:
    ms = np.asarray(rows_ms, np.float64)
    return np.pad(ms, ((rows - ms.shape[0], 0), (columns - ms.shape[1], 0)), mode="edge")
