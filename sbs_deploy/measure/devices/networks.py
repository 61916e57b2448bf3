"""The networks to measure: float graphs from names, runs or files, with slim variants."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner

from sbs_deploy.backends.spec import Backend
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.measure.devices.channels import Axes, GraphLayer, axes_of, shapes_of, slimmed, with_shapes
from sbs_deploy.measure.devices.design import colours, grid_variants, levels_of, random_precisions, random_variant
from sbs_deploy.measure.devices.normal import normal
from sbs_deploy.measure.devices.synthetic import quantized
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir

HELD_OUT = 5
"""INT8 variants that only check predictions."""
RANDOM = 12
"""Variants in INT8, and in float, besides the grid: there many layers have equal levels at a time."""
MIXED = 12
"""Variants whose layers are partly in float, which show what a change of precision costs."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One slim form of a network."""

    counts: dict[int, int]
    """Kept channels by axis; missing axes keep all channels."""
    in_float: frozenset[str] = frozenset()
    """Layers in float; all others are INT8."""
    profiled: bool = False
    """Whether it is timed by layer as well: all in INT8 or all in float."""
    held_out: bool = False
    """Whether the variant only checks predictions."""


@dataclass(frozen=True, kw_only=True)
class ProfiledNetwork:
    """A float graph and its axes of channels."""

    name: str
    model: onnx.ModelProto
    axes: Axes
    sha256: str
    """Hash of the graph without its weights."""

    @property
    def input(self) -> list[int]:
        """Shape of one sample of the first input: channels, height and width of an image."""
        return shapes_of(self.model)[self.model.graph.input[0].name][1:]

    @property
    def layers(self) -> list[str]:
        """Names of layers, in the order in which they run."""
        return [layer.name for layer in self.axes.layers]

    def ends(self, layer: GraphLayer, counts: dict[int, int]) -> tuple[int, int]:
        """Input and output channels of a layer if `counts` channels of the axes are kept."""
        outputs = self.axes.channels(((layer.channels_out, 1),), counts)
        return self.axes.channels(layer.channels_in, counts), outputs

    def parts(self, counts: dict[int, int]) -> dict[str, tuple[float, float]]:
        """Kept fractions of inputs and of outputs, by layer."""
        found = {}
        for layer in self.axes.layers:
            now, dense = self.ends(layer, counts), self.ends(layer, {})
            found[layer.name] = (now[0] / dense[0], now[1] / dense[1])
        return found

    def open_ends(self, layer: GraphLayer) -> tuple[bool, bool, bool]:
        """(inputs may lose channels, outputs may lose channels, both are one axis) of a layer."""
        into, out_of = {self.axes.root(axis) for axis, _ in layer.channels_in}, self.axes.root(layer.channels_out)
        is_open = set(self.axes.open)
        return not into.isdisjoint(is_open), out_of in is_open, into == {out_of}

    def variants(self, points: int) -> list[Variant]:
        """The grid of channels in INT8, the dense network first, and in float; random, mixed and held-out variants."""
        axes, layers = self.axes, self.layers
        sizes = {axis: axes.sizes[axis] for axis in axes.open}
        ends = [
            (axes.root(axis), axes.root(layer.channels_out)) for layer in axes.layers for axis, _ in layer.channels_in
        ]
        levels = {axis: levels_of(size, points) for axis, size in sizes.items()}
        grid = grid_variants(levels, colours(sizes, ends), points)
        rng = np.random.default_rng(0)
        mixed = [(random_variant(sizes, rng), random_precisions(layers, rng)) for _ in range(MIXED)]
        drawn = [random_variant(sizes, rng) for _ in range(HELD_OUT)]
        more = [random_variant(sizes, rng) for _ in range(2 * RANDOM)]
        every = frozenset(layers)
        found = [
            *(Variant(counts=counts, profiled=True) for counts in grid),
            *(Variant(counts=counts, in_float=every, profiled=True) for counts in grid),
            *(Variant(counts=counts) for counts in more[:RANDOM]),
            *(Variant(counts=counts, in_float=every) for counts in more[RANDOM:]),
            *(Variant(counts=counts, in_float=in_float) for counts, in_float in mixed),
            *(Variant(counts=counts, held_out=True) for counts in drawn),
        ]
        # Networks with few channels have few variants.
        seen = [(variant.counts, variant.in_float) for variant in found]
        return [one for index, one in enumerate(found) if seen[index] not in seen[:index]]

    def in_float(self, variant: Variant) -> bool:
        """Whether all layers of a variant are in float."""
        return len(variant.in_float) == len(self.layers)

    def graph(self, variant: Variant, backend: Backend) -> onnx.ModelProto:
        """The graph of a variant, as the backend executes it."""
        slim = slimmed(self.model, self.axes, variant.counts)
        if not self.in_float(variant):
            return quantized(slim, self.axes, backend, variant.in_float)
        return half_precision(slim) if backend.float_type == "fp16" else slim


def load_network(
    name: str, input: tuple[int, int, int], classes: int | None, width: int, batch: int = 1
) -> ProfiledNetwork:
    """A model by name, a run directory, or a float ONNX file with BatchNorm folded.

    Args:
        input: channels, height and width of one image, for a model by name or a file with open sizes.
        classes: number of classes; None for 10 (built-in models) or 1000 (other models).
        width: channels of the first stage of built-in models.
        batch: samples of one inference.

    Raises:
        SbsError: the model is unknown, or the graph has no layers that can be measured.
    """
    path = Path(name)
    if path.suffix == ".onnx" or path.is_dir():
        file = path if path.suffix == ".onnx" else RunDir(path).require(RunDir(path).model_fp32, "sbs-deploy export")
        model = load_onnx(file)
    else:
        model = _float_onnx(name, input, classes, width)
    return network_of(name, model, batch, input)


def network_of(
    name: str, model: onnx.ModelProto, batch: int = 1, image: tuple[int, int, int] = (3, 224, 224)
) -> ProfiledNetwork:
    """A float graph as a network to measure.

    Raises:
        SbsError: the graph is quantized, its image has no fixed size, or it has no layers.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise SbsError(f"{name} is quantized; give the float network (model.fp32.onnx)")
    try:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        model = with_shapes(normal(name, model, batch, image))
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        reason = " ".join(str(error).strip().partition("\n")[0].split())
        raise SbsError(f"{name} has no shapes ({reason}); export it with operators of ONNX itself") from error
    axes = axes_of(model)
    if not axes.layers:
        raise SbsError(f"{name} has no convolution and no linear layer; there is nothing to measure")
    return ProfiledNetwork(name=name, model=model, axes=axes, sha256=_structure(model))


def _float_onnx(name: str, input: tuple[int, int, int], classes: int | None, width: int) -> onnx.ModelProto:
    """The dense network with random weights and folded BatchNorm, exported as in a run. Needs torch."""
    from sbs_deploy.export.float_onnx import onnx_from_module
    from sbs_train.inputs.models import image_example, untrained

    model, spec = untrained(name, input, classes, width)
    return onnx_from_module(model.eval(), image_example(spec))


def _structure(model: onnx.ModelProto) -> str:
    """Hash of the graph without values of weights, which do not change times."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) > 16:
            tensor.raw_data = b""
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
