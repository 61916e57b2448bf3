"""Surfaces over channels from the profiler's times of networks: a first guess, which fit.py corrects.

Layers with equal descriptions (kernel, stride, feature map, following operators) share a surface, over all networks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from sbs_deploy.graph.edit import not_negative
from sbs_deploy.graph.links import readers_of
from sbs_deploy.graph.tensor import attribute
from sbs_deploy.measure.devices.channels import shapes_of
from sbs_deploy.measure.devices.design import levels_of
from sbs_deploy.measure.devices.networks import ProfiledNetwork
from sbs_deploy.measure.devices.session import BEHIND, Steps

Floats = npt.NDArray[np.float64]
Samples = dict[tuple[int, int], list[float]]
"""Milliseconds, or nodes, by (inputs, outputs)."""
Key = tuple[str, str, tuple[int, ...], tuple[bool, ...]]
"""Key of a surface: kind; shape; channels of the dense network at both ends; (inputs may lose channels, outputs may,
both are one axis)."""

SMALLEST_MS = 1e-6
"""Milliseconds of a layer below the profiler's resolution."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What the profiler says of one surface, in INT8 (0) and in float (1)."""

    channels_in: list[int]
    channels_out: list[int]
    ms: Floats
    """`(2, I, J)` milliseconds."""
    nodes: Floats
    """`(2, I, J)` nodes of the engine, over which the milliseconds are spread."""


@dataclass(kw_only=True)
class Pools:
    """Samples of all networks, by surface."""

    points: int
    shapes: dict[str, dict[str, str]]
    """Kernel, stride, feature map, sign of the input and following operators: by network, by layer."""
    ms: dict[Key, tuple[Samples, Samples]] = field(default_factory=dict)
    nodes: dict[Key, tuple[Samples, Samples]] = field(default_factory=dict)

    def add(self, network: ProfiledNetwork, counts: dict[int, int], steps: Steps, in_float: bool) -> None:
        """Add a variant's times by step, all INT8 or all in float; `counts` are its kept channels by axis."""
        for place, (name, key, point) in enumerate(self.layers(network, counts)):
            # What runs before the first layer is a part of it.
            own = [steps[one] for one in (name, BEHIND + name, *([BEHIND] if not place else [])) if one in steps]
            for pool, part in ((self.ms, [one["ms"] for one in own]), (self.nodes, [one["nodes"] for one in own])):
                pair = pool.setdefault(key, ({}, {}))
                pair[in_float].setdefault(point, []).append(float(sum(part)))

    def surfaces(self) -> list[Profiled]:
        """A surface for every key, in order of first use."""
        found = []
        for key, both in self.ms.items():
            ends = [sorted({point[end] for samples in both for point in samples}) for end in (0, 1)]
            into, out_of = (values if len(values) <= self.points + 1 else self._few(values) for values in ends)
            ms, nodes = ([surface_of(samples, into, out_of) for samples in pool[key]] for pool in (self.ms, self.nodes))
            found.append(Profiled(channels_in=into, channels_out=out_of, ms=np.array(ms), nodes=np.array(nodes)))
        return found

    def layers(self, network: ProfiledNetwork, counts: dict[int, int]) -> Iterator[tuple[str, Key, tuple[int, int]]]:
        """(name, key, channels) of every layer of a network with `counts` kept channels by axis."""
        for layer in network.axes.layers:
            dense, now, open_ends = network.ends(layer, {}), network.ends(layer, counts), network.open_ends(layer)
            key = (layer.kind, self.shapes[network.name][layer.name], dense, open_ends)
            one_axis = open_ends[-1]
            yield layer.name, key, (now[0], dense[1]) if one_axis else now

    def _few(self, values: list[int]) -> list[int]:
        return [value for value in levels_of(values[-1], self.points) if value >= values[0]]


def surface_of(samples: Samples, channels_in: Sequence[int], channels_out: Sequence[int]) -> Floats:
    """Values (I, J) at every combination of channels: the median of its samples.

    A combination without a sample, as one end of the layer determines the other, is interpolated by least squares
    (milliseconds are about linear in inputs, outputs and their product).
    """
    median = {point: float(np.median(values)) for point, values in samples.items()}
    terms = np.array([_terms(*point) for point in median])
    plane, *_ = np.linalg.lstsq(terms, np.array([*median.values()]), rcond=None)
    low, high = min(median.values()), max(median.values())
    filled = [
        [median.get((i, j), float(np.clip(_terms(i, j) @ plane, low, high))) for j in channels_out] for i in channels_in
    ]
    ms: Floats = np.maximum(np.array(filled), SMALLEST_MS)
    return ms


def shapes_by_layer(network: ProfiledNetwork, detail: str) -> dict[str, str]:
    """Describe the layers of a network; `detail` (the batch) is added to every shape."""
    model, axes = network.model, network.axes
    shapes, nodes = shapes_of(model), list(model.graph.node)
    typed = ir.from_proto(model)
    signed = {node.outputs[0].name: not not_negative(x) for node in typed.graph if (x := node.inputs[0]) is not None}
    readers = readers_of(model)
    layer_outputs = {nodes[layer.node].output[0] for layer in axes.layers}

    def behind(tensor: str) -> list[str]:
        """Operators up to the next layers."""
        found = []
        for node in readers.get(tensor, ()):
            if node.output[0] not in layer_outputs:
                found += [node.op_type, *([] if node.op_type == "Add" else behind(node.output[0]))]
        return list(dict.fromkeys(found))

    words = {}
    for layer in axes.layers:
        node = nodes[layer.node]
        follows = " ".join(behind(node.output[0]))
        sign = "signed" if signed[node.output[0]] else "unsigned"
        then = [f"then {follows}"] if follows else []
        words[layer.name] = ", ".join([*_geometry(node, shapes), sign, *then, detail])
    return words


def _terms(inputs: float, outputs: float) -> Floats:
    return np.array([1.0, inputs, outputs, inputs * outputs])


def _geometry(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[str]:
    """Kernel, stride, padding, dilation, groups other than depthwise, and the feature map."""
    spatial = shapes.get(node.input[0], [])[2:]
    if node.op_type not in ("Conv", "ConvTranspose"):
        return ["x".join(map(str, spatial)) + " positions"] if spatial else []
    weight = shapes[node.input[1]]
    found = ["x".join(map(str, weight[2:]))]
    for name, usual in (("strides", 1), ("pads", None), ("dilations", 1)):
        values = attribute(node, name, [])
        if values and any(value != usual for value in values):
            each = str(values[0]) if len(set(values)) == 1 else "-".join(map(str, values))
            found.append(f"{name.removesuffix('s')} {each}")
    groups = attribute(node, "group", 1)
    if groups > 1 and weight[1] > 1:
        found.append(f"{groups} groups")
    return [*found, "x".join(map(str, spatial))]
