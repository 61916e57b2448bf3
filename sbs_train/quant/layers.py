"""A float layer whose weights and input share bits; kinds.py has the three kinds of layers.

`swapping.swap_layers` turns the layers of any module into such layers. Until `set_grids` is called a swapped layer
computes exactly what the float one did. Afterwards its gates say which bits it uses: tensors in the autograd graph
during the search (set by `GateBank`), constants once a plan is frozen (set by `set_bits`).

Shapes: O, I output and input channels, N batch; gates_J and metric_J one entry for every level but the coarsest.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Grid, Level
from sbs_train.contract.plan import FLOAT_BITS
from sbs_train.quant.fused import Operation, masked, shared_layer
from sbs_train.quant.quantizer import (
    EAGER,
    Pass,
    Sharing,
    codes_of,
    error_units,
    level_table,
    open_levels,
    quantize,
    rounding_errors,
)
from sbs_train.quant.scale import WEIGHT_CLIP_MIN, centre, weight_scale

METRIC_MOMENTUM = 0.1
METRIC_SAMPLES = 8
"""Activation metrics are averaged over this many samples of a batch, then over steps."""
CLIP_MIN = 1e-12
"""Smallest clip value of an input."""
STATE = frozenset(f"{kind}_{tensor}" for kind in ("clip", "ratio", "metric", "unit", "table") for tensor in ("w", "a"))
"""Parameters and buffers that a swapped layer adds to those of the float layer."""


F = TypeVar("F", bound=Callable[..., Tensor])


def _eager(function: F) -> F:
    """torch.compile of a network around the layers leaves this out: its graphs would depend on gates and probes."""
    disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


class Passes:
    """The forward pass that runs now or ran last; shared by the layers of a network."""

    def __init__(self) -> None:
        self.current = Pass()


KINDS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers that can be quantized, and their subclasses."""


class SBSLayer(nn.Module):
    """Base of `SBSConv2d`, `SBSConvTranspose2d` and `SBSLinear`, mixed in before the torch layer."""

    plain: type[nn.Module]
    """The class of the float layer."""
    weight: Tensor
    metric_w: Tensor
    metric_a: Tensor
    table_w: Tensor
    table_a: Tensor
    unit_w: Tensor
    unit_a: Tensor
    ratio_w: Tensor
    ratio_a: Tensor

    def _init_sharing(self) -> None:
        self.kind: Literal["conv", "depthwise", "linear"] = layer_kind(self)
        self.macs = 0
        """MACs for one sample before pruning, counted by `network.census`."""
        self.group_in = self.group_out = ""
        self.grid_w: Grid | None = None
        self.grid_a: Grid | None = None
        self.standardise: Literal["scale", "mean-std"] = "scale"
        self.gates_w: Tensor | None = None
        self.gates_a: Tensor | None = None
        self.probe_w: Tensor | None = None
        self.probe_a: Tensor | None = None
        """Zeros whose gradient is the change of the loss towards every coarser level, see `quantizer.py`."""
        self.per_sample = True
        """Whether axis 0 of the input is the sample."""
        self.passes: Passes | None = None
        """Says which rows of `probe_a` a forward pass takes; all from the first on without it."""
        self.mask_in: Tensor | None = None
        """`mask_I`, 1 for a kept input channel, else 0; multiplies the weights, which equals masking the input."""
        self.fixed_clip_w: float | None = None
        """The largest weight magnitude once it is fixed; None while it is learned."""
        self.gather_metrics = False
        self.kernels = EAGER
        self.clip_w = nn.Parameter(torch.ones(()))
        """Learned clip value of the weights in units of `weight_scale`; `ratio_w` multiplies it for other bitwidths."""
        self.clip_a = nn.Parameter(torch.ones(()))

    def set_grids(self, grid_w: Grid, grid_a: Grid) -> None:
        """Turn quantization on, at the finest bits."""
        device = self.weight.device
        self.grid_w, self.grid_a = grid_w, grid_a
        for suffix, grid in (("w", grid_w), ("a", grid_a)):
            self.register_buffer(f"table_{suffix}", level_table(grid).to(device), persistent=False)
            self.register_buffer(f"unit_{suffix}", error_units(grid).to(device))
            self.register_buffer(f"metric_{suffix}", torch.ones(len(grid.levels) - 1, device=device))
            self.register_buffer(f"ratio_{suffix}", torch.ones(len(grid.levels), device=device))
        self.set_bits(grid_w.bits[-1], grid_a.bits[-1])

    @torch.no_grad()
    def set_clips(self, clips_w: list[float], clips_a: list[float]) -> None:
        """Set the first clip values, one per level: of the weights in units of their scale, and of the input."""
        for clip, ratio_K, values in ((self.clip_w, self.ratio_w, clips_w), (self.clip_a, self.ratio_a, clips_a)):
            clip.fill_(values[-1])
            ratio_K.copy_(torch.tensor(values) / values[-1])

    @torch.no_grad()
    def fix_clips(self, clip_w: float, clip_a: float) -> None:
        """Fix the clip values of a frozen layer for good: the largest magnitudes of its weights and of its input."""
        self.fixed_clip_w = clip_w
        # Layers that read one tensor share the parameter; at different bits a plan gives them different values.
        self.clip_a = nn.Parameter(torch.full_like(self.clip_a, clip_a))
        self.ratio_a.fill_(1)

    def set_bits(self, bits_w: int, bits_a: int) -> None:
        """Freeze the bitwidths; 32 for both leaves the layer in float."""
        if bits_w == bits_a == FLOAT_BITS:
            self.gates_w = self.gates_a = None
            return
        grid_w, grid_a = self._grids()
        self.gates_w = _gates_for(grid_w, bits_w).to(self.weight.device)
        self.gates_a = _gates_for(grid_a, bits_a).to(self.weight.device)

    @property
    def level_w(self) -> Level | None:
        """Level of the weights at the selected bits; None in float. Waits for the device, to read the gates."""
        return None if self.gates_w is None else self._grids()[0].levels[int(open_levels(self.gates_w))]

    @property
    def level_a(self) -> Level | None:
        """Level of the input at the selected bits; None in float."""
        return None if self.gates_a is None else self._grids()[1].levels[int(open_levels(self.gates_a))]

    @property
    def bits_w(self) -> int:
        """Selected weight bits; 32 in float."""
        return self.level_w.bits if self.level_w else FLOAT_BITS

    @property
    def bits_a(self) -> int:
        """Selected input bits; 32 in float."""
        return self.level_a.bits if self.level_a else FLOAT_BITS

    def centred_weight(self) -> Tensor:
        """The weights to quantize, shaped like `weight`: centred if the settings say mean-std, in unchanged units.

        The deviation scales the clip value, not the weights: a layer without normalisation keeps its output range.
        """
        return self.weight - centre(self.weight.detach()) if self.standardise == "mean-std" else self.weight

    def absolute_clip_w(self) -> Tensor:
        """Largest weight magnitude (0-d), the plan's `clip_w`; its gradient reaches the learned clip value."""
        return self._clips_w()[open_levels(self._gates_w())]

    def absolute_clip_a(self) -> Tensor:
        """Largest input magnitude (0-d) at the selected bits, the plan's `clip_a`."""
        assert self.gates_a is not None
        return self._clips_a()[open_levels(self.gates_a)]

    def _clips_w(self) -> Tensor:
        if self.fixed_clip_w is not None:
            return torch.full((len(self.table_w),), self.fixed_clip_w, device=self.weight.device)
        return (self.clip_w * weight_scale(self.weight.detach()) * self.ratio_w).clamp_min(WEIGHT_CLIP_MIN)

    def _clips_a(self) -> Tensor:
        return (self.clip_a * self.ratio_a).clamp_min(CLIP_MIN)

    @_eager
    def quantized_weight(self) -> Tensor:
        """Weights as the forward pass uses them, shaped like `weight`: quantized, pruned inputs at zero."""
        weight = self.centred_weight()
        if self.gates_w is not None:
            weight = quantize(weight, self._sharing_w(self.gates_w))
        return masked(weight, self._mask())

    @_eager
    def quantized_input(self, x: Tensor) -> Tensor:
        """The layer's input at the selected bits."""
        return x if self.gates_a is None else quantize(x, self._sharing_a(self.gates_a, x))

    @_eager
    def run(self, x: Tensor, operation: Operation, bias: Tensor | None) -> Tensor:
        """The layer's output from its quantized input and weights."""
        weight = self.centred_weight()
        if self.gates_a is None or self.gates_w is None:
            return operation.run(self.quantized_input(x), self.quantized_weight(), bias)
        self._gather(x)
        sharings = self._sharing_a(self.gates_a, x), self._sharing_w(self.gates_w)
        return shared_layer(x, weight, bias, self._mask(), operation, sharings)

    @torch.no_grad()
    def weight_codes(self) -> Tensor:
        """Integer codes (int8, shaped like `weight`) of the quantized weights, pruned inputs included."""
        level = self.level_w
        if level is None:
            raise SbsError("the layer is not quantized; apply a plan first")
        if level.code_max > 127:
            raise SbsError("grid paper has 8-bit codes beyond ±127, which no INT8 engine holds; train with --grid int8")
        row = self.table_w[open_levels(self._gates_w())]
        return codes_of(self.centred_weight(), self.absolute_clip_w(), row, odd=level.odd)

    @torch.no_grad()
    def normalise_metrics(self) -> None:
        """Make the current metrics their unit, so that every gate of the network starts at the same distance from 0."""
        for suffix in ("w", "a"):
            metric, unit = getattr(self, f"metric_{suffix}"), getattr(self, f"unit_{suffix}")
            unit.mul_(metric.clamp_min(1e-3))
            metric.fill_(1.0)

    def _gates_w(self) -> Tensor:
        assert self.gates_w is not None
        return self.gates_w

    def _grids(self) -> tuple[Grid, Grid]:
        assert self.grid_w is not None and self.grid_a is not None
        return self.grid_w, self.grid_a

    def _sharing_w(self, gates_J: Tensor) -> Sharing:
        return Sharing(
            clip_K=self._clips_w(),
            gates_J=gates_J,
            table_K4=self.table_w,
            probe_MJ=self.probe_w,
            kernels=self.kernels,
        )

    def _sharing_a(self, gates_J: Tensor, x: Tensor) -> Sharing:
        within = None if self.passes is None or not torch.is_grad_enabled() else self.passes.current
        if within is not None and self.per_sample:
            within.samples = len(x)
        return Sharing(
            clip_K=self._clips_a(),
            gates_J=gates_J,
            table_K4=self.table_a,
            probe_MJ=self._rows(),
            kernels=self.kernels,
            within=within,
        )

    def _rows(self) -> Tensor | None:
        """The part of `probe_a` for the samples of this pass; more rows than samples do no harm."""
        probe, start = self.probe_a, 0 if self.passes is None else self.passes.current.start
        if probe is None or probe.dim() == 1 or not start:
            return probe
        return probe[start:] if start < len(probe) else None

    def _mask(self) -> Tensor | None:
        return None if self.kind == "depthwise" else self.mask_in

    @torch.no_grad()
    def _gather(self, x: Tensor) -> None:
        """Measure the rounding errors of the weights and of the input x, if the search needs metrics."""
        if not self.gather_metrics or self.gates_w is None:
            return
        for metric_J, tensor, clip_K, table_K4, unit_J in (
            (self.metric_w, self.centred_weight(), self._clips_w(), self.table_w, self.unit_w),
            (self.metric_a, x[:METRIC_SAMPLES], self._clips_a(), self.table_a, self.unit_a),
        ):
            if len(metric_J):
                metric_J.lerp_(rounding_errors(tensor, clip_K, table_K4) / unit_J, METRIC_MOMENTUM)


def sbs_layers(model: nn.Module) -> Iterator[tuple[str, SBSLayer]]:
    """(name, layer) of every swapped layer, in the order of the modules."""
    for name, module in model.named_modules():
        if isinstance(module, SBSLayer):
            yield name, module


def outputs_first(layer: nn.Module) -> Tensor:
    """A view of a layer's weights with the output channels on axis 0; a transposed convolution has them on axis 1."""
    weight = layer.get_parameter("weight")
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def layer_kind(layer: nn.Module) -> Literal["conv", "depthwise", "linear"]:
    """The plan's word for a convolution or linear layer."""
    if isinstance(layer, nn.Conv2d):
        return "depthwise" if layer.groups == layer.in_channels == layer.out_channels > 1 else "conv"
    return "linear" if isinstance(layer, nn.Linear) else "conv"


def _gates_for(grid: Grid, bits: int) -> Tensor:
    index = grid.levels.index(grid.level(bits))
    return torch.tensor([1.0 if j < index else 0.0 for j in range(len(grid.levels) - 1)])
