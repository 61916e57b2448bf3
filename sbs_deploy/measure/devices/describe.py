"""What decides the time of a network's steps, in words: layers with the same words share a surface."""

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from sbs_deploy.graph.edit import not_negative
from sbs_deploy.measure.devices.channels import GraphLayer, shapes_of
from sbs_deploy.measure.devices.networks import Network
from sbs_deploy.measure.devices.steps import BEHIND


@dataclass(frozen=True, kw_only=True)
class Description:
    """The words for every step of one network."""

    shapes: dict[str, str]
    """Of layers: kernel, stride, feature map, sign of the input, what follows."""
    kinds: dict[str, str]
    follows: dict[str, str]
    """What runs behind a layer, as operators."""
    open: frozenset[int]
    """Axes that may lose channels."""
    roots: dict[int, int]

    def of(self, step: str) -> tuple[str, str]:
        """(kind, shape) of a step."""
        layer = step.removeprefix(BEHIND)
        if not step.startswith(BEHIND):
            return self.kinds[layer], self.shapes[layer]
        return self.follows.get(layer) or "boundary", f"behind {layer}" if layer else "before the first layer"

    def one_axis(self, layer: GraphLayer) -> bool:
        """Whether a layer has the same channels at both ends."""
        return {self.roots[axis] for axis, _ in layer.channels_in} == {self.roots[layer.channels_out]}

    def open_ends(self, layer: GraphLayer) -> tuple[int, ...]:
        """Which ends of a layer may lose channels, and whether they are one."""
        ends = [any(self.roots[axis] in self.open for axis, _ in layer.channels_in)]
        ends.append(self.roots[layer.channels_out] in self.open)
        return (*map(int, ends), int(self.one_axis(layer)))


def describe(network: Network, detail: str) -> Description:
    """Of a network; `detail` is added to every shape: precision, batch."""
    model, axes = network.model, network.axes
    shapes, nodes = shapes_of(model), list(model.graph.node)
    typed = ir.from_proto(model)
    signed = {node.outputs[0].name: not not_negative(x) for node in typed.graph if (x := node.inputs[0]) is not None}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layer_nodes = {nodes[layer.node].output[0] for layer in axes.layers}
    owners = {name for tensor in network.shared for name in tensor.owners}

    def behind(tensor: str) -> list[str]:
        """Operators up to the next layers."""
        found = []
        for node in readers.get(tensor, ()):
            if node.output[0] not in layer_nodes:
                found += [node.op_type, *([] if node.op_type == "Add" else behind(node.output[0]))]
        return list(dict.fromkeys(found))

    words, kinds, follows = {}, {}, {}
    for layer in axes.layers:
        node = nodes[layer.node]
        follows[layer.name] = " ".join(behind(node.output[0]))
        parts = [
            *_geometry(node, shapes),
            "signed" if signed[node.output[0]] else "unsigned",
            *([f"then {follows[layer.name]}"] if follows[layer.name] else []),
            *(["shared"] if layer.name in owners else []),
            detail,
        ]
        words[layer.name], kinds[layer.name] = ", ".join(parts), layer.kind
    return Description(
        shapes=words,
        kinds=kinds,
        follows=follows,
        open=frozenset(axes.open),
        roots={axis: axes.root(axis) for axis in range(len(axes.sizes))},
    )


def _geometry(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> list[str]:
    """Kernel, stride, padding, dilation, groups other than depthwise, and the feature map."""
    attributes = {a.name: a for a in node.attribute}
    spatial = shapes.get(node.input[0], [])[2:]
    if node.op_type not in ("Conv", "ConvTranspose"):
        return ["x".join(map(str, spatial)) + " positions"] if spatial else []
    weight = shapes[node.input[1]]
    found = ["x".join(map(str, weight[2:]))]
    for name, usual in (("strides", 1), ("pads", None), ("dilations", 1)):
        values = list(attributes[name].ints) if name in attributes else []
        if values and any(value != usual for value in values):
            each = str(values[0]) if len(set(values)) == 1 else "-".join(map(str, values))
            found.append(f"{name.removesuffix('s')} {each}")
    groups = attributes["group"].i if "group" in attributes else 1
    if groups > 1 and weight[1] > 1:
        found.append(f"{groups} groups")
    return [*found, "x".join(map(str, spatial))]
