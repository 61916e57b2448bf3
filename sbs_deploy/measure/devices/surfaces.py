"""Surfaces over channels from the measurements of networks, and the steps of device.json on these surfaces.

Layers with equal descriptions (kernel, stride, feature map, following operators) share a surface, over all networks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from sbs_deploy.graph.edit import not_negative
from sbs_deploy.graph.links import readers_of
from sbs_deploy.graph.names import INPUT
from sbs_deploy.graph.tensor import attribute
from sbs_deploy.measure.devices.channels import shapes_of
from sbs_deploy.measure.devices.design import levels_of
from sbs_deploy.measure.devices.networks import ProfiledNetwork
from sbs_deploy.measure.devices.session import BEHIND
from sbs_train.contract.device import Step, Surface

Floats = npt.NDArray[np.float64]
Samples = Mapping[tuple[int, int], Sequence[float]]
"""Milliseconds by (inputs, outputs)."""
Key = tuple[str, str, tuple[int, ...], tuple[bool, ...]]
"""Key of a surface: kind; shape; channels of the dense network at both ends; (inputs may lose channels, outputs may,
both are one axis)."""

SMALLEST_MS = 1e-6
"""Milliseconds of a step below the profiler's resolution."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Descriptions of a network's layers."""

    shapes: dict[str, str]
    """Kernel, stride, feature map, sign of the input and following operators, by layer."""
    follows: dict[str, str]
    """Operators that run behind the layer, by layer."""


@dataclass(kw_only=True)
class Pools:
    """Samples of all networks, by surface."""

    align: int
    points: int
    descriptions: dict[str, Description]
    """Descriptions of the networks, by name."""
    behind: dict[str, list[str]]
    """Steps of each network that are no layers, in any variant."""
    samples: dict[Key, dict[tuple[int, int], list[float]]] = field(default_factory=dict)

    def add(self, network: ProfiledNetwork, counts: dict[int, int], step_ms: dict[str, float]) -> None:
        """Add a variant's milliseconds by step; `counts` are its kept channels by axis."""
        for name, key, point in self._steps(network, counts):
            self.samples.setdefault(key, {}).setdefault(point, []).append(step_ms.get(name, 0.0))

    def surfaces(self) -> list[Surface]:
        """A surface for every key, in order of first use."""
        found = []
        for (kind, shape, *_), samples in self.samples.items():
            ends = [sorted({point[end] for point in samples}) for end in (0, 1)]
            into, out_of = (values if len(values) <= self.points + 1 else self._few(values) for values in ends)
            ms = surface_of(samples, into, out_of).tolist()
            found.append(Surface(kind=kind, shape=shape, channels_in=into, channels_out=out_of, ms=ms))
        return found

    def steps(self, network: ProfiledNetwork) -> tuple[list[Step], list[Step]]:
        """(layers, other steps) of a network, with indices of their surfaces."""
        place = {key: index for index, key in enumerate(self.samples)}
        layers: list[Step] = []
        others: list[Step] = []
        for name, key, _ in self._steps(network, {}):
            if name.startswith(BEHIND):
                follows = name.removeprefix(BEHIND) or None
                others.append(Step(name=name if follows else INPUT, surface=place[key], follows=follows))
            else:
                layers.append(Step(name=name, surface=place[key], follows=None))
        return layers, others

    def _steps(self, network: ProfiledNetwork, counts: dict[int, int]) -> Iterable[tuple[str, Key, tuple[int, int]]]:
        """(name, key, channels) of every step of a network with `counts` kept channels by axis."""
        about = self.descriptions[network.name]
        layers = {layer.name: layer for layer in network.axes.layers}
        for name in (*layers, *self.behind[network.name]):
            layer = layers.get(name.removeprefix(BEHIND))
            if layer is None:
                yield name, ("boundary", f"before the first layer of {network.name}", (), ()), (1, 1)
                continue
            dense, now, open_ends = network.ends(layer, {}), network.ends(layer, counts), network.open_ends(layer)
            if name.startswith(BEHIND):
                kind, shape = about.follows[layer.name] or "boundary", f"{name} of {network.name}"
                yield name, (kind, shape, dense, open_ends), (now[1], dense[1])
            else:
                one_axis = open_ends[-1]
                key = (layer.kind, about.shapes[name], dense, open_ends)
                yield name, key, (now[0], dense[1]) if one_axis else now

    def _few(self, values: list[int]) -> list[int]:
        return [value for value in levels_of(values[-1], self.align, self.points) if value >= values[0]]


def surface_of(samples: Samples, channels_in: Sequence[int], channels_out: Sequence[int]) -> Floats:
    """Milliseconds (I, J) at every combination of channels: the median of its samples.

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


def describe(network: ProfiledNetwork, detail: str) -> Description:
    """Describe the layers of a network; `detail` (precision, batch) is added to every shape."""
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

    words, follows = {}, {}
    for layer in axes.layers:
        node = nodes[layer.node]
        follows[layer.name] = " ".join(behind(node.output[0]))
        sign = "signed" if signed[node.output[0]] else "unsigned"
        then = [f"then {follows[layer.name]}"] if follows[layer.name] else []
        words[layer.name] = ", ".join([*_geometry(node, shapes), sign, *then, detail])
    return Description(shapes=words, follows=follows)


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
