"""Rules for channel counts and for fixed or open axes."""

from collections.abc import Callable, Iterator
from functools import partial

from onnx import TensorProto

from sbs_deploy.backends.spec import reader_of
from sbs_deploy.graph.view import Graph
from sbs_deploy.graph.weights import Layer
from sbs_deploy.lint.finding import Hit, Rule

FP16_MULTIPLE = 8
"""Multiple of channels of FP16 tensor cores."""


def find_trt_channels(graph: Graph) -> Iterator[Hit]:
    """Layers whose channels are no multiple of a tensor core's tile."""

    def multiple(layer: Layer) -> int:
        if layer.quantized:
            return reader_of("trt").channel_multiple
        return FP16_MULTIPLE if graph.type_of(layer.node.output[0]) == TensorProto.FLOAT16 else 1

    return _off(graph, multiple)


def find_ort_channels(graph: Graph) -> Iterator[Hit]:
    """Layers whose channels are no multiple of an integer kernel's block."""
    return _off(graph, lambda layer: reader_of("ort").channel_multiple if layer.quantized else 1)


def find_depthwise(graph: Graph, *, multiple: int | None = None) -> Iterator[Hit]:
    """Quantized depthwise convolutions, if given those whose channels are off a multiple."""
    for layer in graph.layers:
        channels = max(layer.weight_shape[:2])
        if layer.quantized and layer.depthwise and (multiple is None or channels % multiple):
            yield Hit(node=graph.label(layer.node), detail=f"{channels} channels")


def find_static_batch(graph: Graph) -> Iterator[Hit]:
    """Inputs whose first axis is a number."""
    for value in graph.inputs:
        shape = graph.shapes.get(value.name, ())
        if len(shape) > 1 and isinstance(shape[0], int):
            yield Hit(node=value.name, detail=f"batch {shape[0]}")


def find_dynamic_axes(graph: Graph) -> Iterator[Hit]:
    """Inputs with an open axis other than the first."""
    for value in graph.inputs:
        shape = graph.shapes.get(value.name, ())
        if any(not isinstance(size, int) for size in shape[1:]):
            yield Hit(node=value.name, detail=" x ".join(str(size or "?") for size in shape))


def _off(graph: Graph, multiple: Callable[[Layer], int]) -> Iterator[Hit]:
    """Layers whose channels are no multiple of `multiple`, except channels of images and classes."""
    layers = {id(layer.node) for layer in graph.layers}
    computed: set[str] = set()  # by a layer
    for node in graph.nodes:
        if id(node) in layers or computed.intersection(node.input):
            computed.update(node.output)
    wanted: set[str] = set()  # by a layer
    for node in reversed(graph.nodes):
        if id(node) in layers or wanted.intersection(node.output):
            wanted.update(node.input)
    for layer in graph.layers:
        step, (inner, outer) = multiple(layer), layer.channels
        wrong = []
        if inner % step and not layer.depthwise and layer.node.input[0] in computed:
            wrong.append(f"{inner} input")
        if outer % step and not layer.depthwise and layer.node.output[0] in wanted:
            wrong.append(f"{outer} output")
        if wrong:
            detail = f"{' and '.join(wrong)} channels, not multiples of {step}"
            yield Hit(node=graph.label(layer.node), detail=detail)


RULES = (
    Rule(
        id="channels",
        dialects=("trt",),
        severity="warning",
        effect="tensor cores pad the channels: pruning to odd counts can be slower than not pruning",
        remedy="prune in steps (sbs-train --search.align 16); INT8 wants multiples of 16, FP16 of 8",
        find=find_trt_channels,
    ),
    Rule(
        id="channels",
        dialects=("ort",),
        severity="warning",
        effect="uint8 kernels move in steps of 4 channels and handle the rest slowly",
        remedy="prune in steps of 4 or more (sbs-train --search.align 16 suits all targets)",
        find=find_ort_channels,
    ),
    Rule(
        id="depthwise",
        dialects=("ort",),
        severity="warning",
        effect="a uint8 depthwise convolution off a multiple of 4 channels is 5 to 8 times slower",
        remedy="keep a multiple of 4 channels",
        find=partial(find_depthwise, multiple=reader_of("ort").channel_multiple),
    ),
    Rule(
        id="depthwise",
        dialects=("trt",),
        severity="warning",
        effect="groups of an INT8 depthwise convolution may be padded from 1 to 4 channels",
        remedy="keep depthwise convolutions in FP16 unless a measurement says otherwise",
        find=find_depthwise,
    ),
    Rule(
        id="static-batch",
        dialects=("trt",),
        severity="warning",
        effect="the engine takes this batch size alone: a profile has nothing to range over",
        remedy="export with a dynamic first axis",
        find=find_static_batch,
    ),
    Rule(
        id="dynamic-axes",
        dialects=("trt",),
        severity="warning",
        effect="each needs its range in an optimization profile (`no optimization profile has been defined`), and "
        "kernels are tuned for one size; sbs-deploy build refuses it",
        remedy="fix all axes but the batch",
        find=find_dynamic_axes,
    ),
)
