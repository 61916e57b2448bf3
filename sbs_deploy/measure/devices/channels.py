"""Which channels of a float ONNX graph exist or vanish together, and the graph with fewer channels. No torch.

Every convolution and linear layer starts an axis of channels; depthwise convolutions, activations and pooling pass the
axis on, additions make two axes one, a Concat puts several in a row. Unknown operators keep all channels, and so do the
inputs and the outputs. Slim graphs serve measurements only: their weights are simply the first ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from sbs_deploy.graph.names import QUANTIZED_OPS, owner_of
from sbs_deploy.graph.tensor import attribute
from sbs_train.contract.errors import SbsError

Segments = tuple[tuple[int, int], ...]
"""Channels of a tensor: (axis, features per channel) in a row; a channel of a flattened map has H * W features."""

PASS_ON = (
    *("Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Softplus", "Mish"),
    *("Gelu", "Erf", "Sqrt", "Exp", "Neg", "Abs", "Identity", "Dropout", "Cast", "Pad", "Resize"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
)
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Pow", "BatchNormalization", "PRelu")
REDUCE = ("ReduceMean", "ReduceMax", "ReduceSum")
UNPACK = ("Slice", "Reshape", "Cast", "Abs")
"""Operators that make inputs of a network's layers of its own inputs."""
FLATTEN = ("Flatten", "Reshape", "Squeeze")


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """A convolution or linear layer, whose weights are called `NAME.weight`."""

    name: str
    node: int
    """Index of the layer's node in the graph."""
    kind: str
    """conv, depthwise or linear, as in a plan."""
    channels_in: Segments
    channels_out: int
    """Axis of the output channels."""
    movable: bool
    """Whether the layer's weights can be cut to fewer channels."""


@dataclass(kw_only=True)
class Axes:
    """The axes of channels of one graph."""

    sizes: list[int] = field(default_factory=list)
    of: dict[str, Segments] = field(default_factory=dict)
    """Channels of every tensor, by its name."""
    layers: list[GraphLayer] = field(default_factory=list)
    """Layers in the order in which they run."""
    constants: dict[str, tuple[int, Segments]] = field(default_factory=dict)
    """Constants with a value for each channel: (their channel axis, channels)."""
    _same: list[int] = field(default_factory=list)
    _fixed: set[int] = field(default_factory=set)

    def new(self, size: int) -> int:
        """Add an axis of `size` channels; returns the axis's number."""
        self.sizes.append(size)
        self._same.append(len(self._same))
        return len(self.sizes) - 1

    def root(self, axis: int) -> int:
        """The representative of all axes that were joined with `axis`."""
        while self._same[axis] != axis:
            axis = self._same[axis]
        return axis

    def fix(self, segments: Segments) -> None:
        """Make segments keep all their channels."""
        self._fixed.update(axis for axis, _ in segments)

    def join(self, one: Segments, other: Segments) -> None:
        """Join the channels of two tensors; if they do not match, both keep all channels."""
        if [(self.sizes[axis], each) for axis, each in one] != [(self.sizes[axis], each) for axis, each in other]:
            self.fix(one)
            self.fix(other)
            return
        for (left, _), (right, _) in zip(one, other, strict=True):
            self._same[self.root(right)] = self.root(left)

    @property
    def open(self) -> list[int]:
        """Axes that may lose channels, in the order of the graph."""
        fixed = {self.root(axis) for axis in self._fixed}
        roots = dict.fromkeys(self.root(axis) for axis in range(len(self.sizes)))
        return [axis for axis in roots if axis not in fixed]

    def channels(self, segments: Segments, counts: Mapping[int, int]) -> int:
        """Number of channels in `segments` if `counts` channels of some axes are kept."""
        return sum(counts.get(self.root(axis), self.sizes[axis]) for axis, _ in segments)

    def features(self, segments: Segments, counts: Mapping[int, int]) -> int:
        """Size of a tensor's second axis with `segments` if `counts` channels of some axes are kept."""
        return sum(each * counts.get(self.root(axis), self.sizes[axis]) for axis, each in segments)


def axes_of(model: onnx.ModelProto) -> Axes:
    """The axes of a float graph with shapes (see `with_shapes`)."""
    axes = Axes()
    shapes = shapes_of(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    given = dict.fromkeys(value.name for value in model.graph.input)
    for name in given:
        if len(shapes[name]) > 1:
            axes.of[name] = ((axes.new(shapes[name][1]), 1),)
            axes.fix(axes.of[name])
    for index, node in enumerate(model.graph.node):
        if node.op_type in QUANTIZED_OPS and node.input[1] in constants:
            _layer(axes, node, index, constants, shapes)
        elif node.op_type in UNPACK and all(name in given or name in constants for name in node.input):
            given |= dict.fromkeys(node.output)
            shape = shapes.get(node.output[0], [])
            if len(shape) > 1 and shape[1]:
                axes.of[node.output[0]] = ((axes.new(shape[1]), 1),)
                axes.fix(axes.of[node.output[0]])
        else:
            _pass_on(axes, node, constants, shapes)
    for value in model.graph.output:
        axes.fix(axes.of.get(value.name, ()))
    for layer in axes.layers:
        if not layer.movable:
            axes.fix((*layer.channels_in, (layer.channels_out, 1)))
    return axes


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with inferred shapes, as far as onnx knows the operators."""
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes by tensor; 0 is a size that depends on the batch."""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    found = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
    return found | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def slimmed(model: onnx.ModelProto, axes: Axes, counts: Mapping[int, int]) -> onnx.ModelProto:
    """The graph with the first `counts` channels of every axis (by root); SbsError if that is impossible."""
    slim = onnx.ModelProto()
    slim.CopyFrom(model)
    del slim.graph.value_info[:]
    tensors, shapes = {tensor.name: tensor for tensor in slim.graph.initializer}, shapes_of(model)

    def cut(name: str, axis: int, count: int) -> None:
        tensor = tensors[name]
        if tensor.dims[axis] != count:
            values = np.take(numpy_helper.to_array(tensor), np.arange(count), axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

    for layer in axes.layers:
        node = slim.graph.node[layer.node]
        count = axes.channels(((layer.channels_out, 1),), counts)
        outputs = 1 if node.op_type == "MatMul" else 0
        if not layer.movable:
            continue
        cut(node.input[1], outputs, count)
        if len(node.input) > 2:
            cut(node.input[2], 0, count)
        if layer.kind == "depthwise":
            next(a for a in node.attribute if a.name == "group").i = count
        else:
            cut(node.input[1], 1 - outputs, axes.features(layer.channels_in, counts))
    for name, (axis, segments) in axes.constants.items():
        cut(name, axis, axes.features(segments, counts))
    for node in slim.graph.node:
        flat = len(shapes.get(node.output[0], ())) == 2
        if node.op_type == "Reshape" and flat and node.output[0] in axes.of:
            name = f"{node.output[0]}.shape"
            features = axes.features(axes.of[node.output[0]], counts)
            slim.graph.initializer.append(numpy_helper.from_array(np.array([-1, features], np.int64), name))
            node.input[1] = name
    try:
        return with_shapes(slim)
    except onnx.shape_inference.InferenceError as error:
        reason = str(error).strip().partition("\n")[0]
        raise SbsError(
            f"the network cannot be slimmed ({reason}); give the model.fp32.onnx that `sbs-deploy export` makes of it"
        ) from error


def _layer(
    axes: Axes,
    node: onnx.NodeProto,
    index: int,
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, list[int]],
) -> None:
    x, weight = axes.of.get(node.input[0], ()), list(constants[node.input[1]].dims)
    groups = attribute(node, "group", 1)
    linear = node.op_type in ("Gemm", "MatMul")
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    outputs, inputs = (weight[1], weight[0]) if transposed else (weight[0], weight[1])
    depthwise = node.op_type == "Conv" and groups == weight[0] > 1 and weight[1] == 1
    known = bool(x) and axes.features(x, {}) == inputs * groups
    bias = len(node.input) < 3 or node.input[2] in constants
    flat = not linear or len(shapes.get(node.output[0], ())) == 2
    supported = node.op_type in ("Conv", "MatMul") or (node.op_type == "Gemm" and not transposed)
    movable = known and bias and flat and supported
    if depthwise and movable and all(each == 1 for _, each in x) and len(x) == 1:
        out = x[0][0]
    else:
        movable = movable and groups == 1
        out = axes.new(weight[1] * groups if node.op_type == "ConvTranspose" else outputs)
    axes.layers.append(
        GraphLayer(
            name=owner_of(node.input[1]),
            node=index,
            kind="linear" if linear else "depthwise" if depthwise else "conv",
            channels_in=x if known else ((axes.new(inputs * groups), 1),),
            channels_out=out,
            movable=movable,
        )
    )
    axes.fix(() if movable else x)
    if flat:
        axes.of[node.output[0]] = ((out, 1),)


def _pass_on(
    axes: Axes, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], shapes: Mapping[str, list[int]]
) -> None:
    computed = [name for name in node.input if name and name not in constants]
    known = [axes.of[name] for name in computed if axes.of.get(name)]
    shape = shapes.get(node.output[0], []) if node.output else []
    one_input = len(known) == len(computed) == 1
    reduces = node.op_type in REDUCE and len(shape) >= 2 and _spatial(node, constants)
    if one_input and (node.op_type in PASS_ON or reduces):
        axes.of[node.output[0]] = known[0]
        return
    if one_input and node.op_type in FLATTEN and len(shape) == 2:
        before = shapes.get(computed[0], [])
        each = int(np.prod(before[2:], dtype=np.int64)) if len(before) > 2 else 1
        if each and shape[1] == axes.features(known[0], {}) * each:
            axes.of[node.output[0]] = tuple((axis, own * each) for axis, own in known[0])
            return
    if node.op_type in ELEMENTWISE and known and _elementwise(axes, node, constants, shapes, computed):
        return
    if node.op_type == "Concat" and len(known) == len(computed) and known and attribute(node, "axis", 0) == 1:
        axes.of[node.output[0]] = tuple(segment for segments in known for segment in segments)
        return
    for segments in known:
        axes.fix(segments)


def _elementwise(
    axes: Axes,
    node: onnx.NodeProto,
    constants: Mapping[str, onnx.TensorProto],
    shapes: Mapping[str, list[int]],
    computed: list[str],
) -> bool:
    """Join the operands of an elementwise node; False for other nodes."""
    shape = shapes.get(node.output[0], [])
    wide = [name for name in computed if len(shapes.get(name, ())) == len(shape) >= 2 and shapes[name][1] == shape[1]]
    narrow = [name for name in computed if name not in wide]
    if not wide or not all(name in axes.of for name in wide):
        return False
    if any(len(shapes.get(name, ())) != len(shape) or shapes[name][1] != 1 for name in narrow):
        return False
    per_channel: dict[str, int] = {}
    for name in (name for name in node.input if name in constants):
        dims = list(constants[name].dims)
        place = 0 if node.op_type == "BatchNormalization" else len(dims) - len(shape) + 1
        if 0 <= place < len(dims) and dims[place] == shape[1] > 1:
            per_channel[name] = place
        elif int(np.prod(dims[max(place, 0) : place + 1], dtype=np.int64)) != 1:
            return False
    segments = axes.of[wide[0]]
    for other in wide[1:]:
        axes.join(segments, axes.of[other])
    axes.constants |= {name: (place, segments) for name, place in per_channel.items()}
    axes.of[node.output[0]] = segments
    return True


def _spatial(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a reduction runs over spatial axes only."""
    if len(node.input) < 2 or node.input[1] not in constants:
        return False
    reduced: npt.NDArray[np.int64] = numpy_helper.to_array(constants[node.input[1]]).reshape(-1)
    return all(axis in (2, 3, -1, -2) for axis in reduced.tolist())
