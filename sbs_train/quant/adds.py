"""Residual additions: both operands at 8 bits, so that an INT8 engine keeps the whole block in integers.

ONNX Runtime runs a convolution as an integer kernel only if its output is quantized as well; where it feeds an
addition, the addition's operands need Q/DQ. An addition is an operator in a `forward`, not a module, so it is
intercepted while the model runs (`interception.py`).

If a quantized layer reads an operand too, the operand takes that layer's clip value while the layer stays at 8 bits:
the tensor then has one quantizer, and an engine quantizes it once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calib.calls import argument
from sbs_train.contract.cost import INT8_BITS
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Grid, make_grid
from sbs_train.contract.limits import WITHOUT_GRADIENTS
from sbs_train.example import Example
from sbs_train.quant.interception import Interceptor, Place, intercept_additions, uninstall
from sbs_train.quant.layers import SBSLayer
from sbs_train.quant.quantizer import EAGER, Kernels, Sharing, level_table, quantize

GRIDS = (make_grid("unsigned", (INT8_BITS,)), make_grid("signed", (INT8_BITS,)))
CLIP_MIN = 1e-6
PARAMETERS = ("residual_clip_lhs", "residual_clip_rhs")


@dataclass(frozen=True, kw_only=True)
class Addition:
    """An addition of two feature maps."""

    place: Place
    readers: tuple[str | None, str | None] = (None, None)
    """Layers that also read the left and the right operand; None where no layer does."""
    float_reason: str = ""
    """Why the addition stays in float; empty where it can be quantized."""


class ResidualAdds:
    """The operand quantizers of all additions of a model.

    Their clip values `residual_clip_lhs` and `residual_clip_rhs` (A additions each) are parameters of the model itself,
    so they move, train and are saved with the model; a child module would be run by a root `Sequential`. Quantization
    is off until `enable`.
    """

    def __init__(self, additions: Sequence[Addition], layers: Mapping[str, SBSLayer] | None = None) -> None:
        """
        Args:
            additions: the additions to quantize, from `additions_of`.
            layers: the layers that `additions` names.
        """
        self.places = [addition.place for addition in additions]
        self.count = len(additions)
        self.clip_lhs = nn.Parameter(torch.ones(self.count))
        self.clip_rhs = nn.Parameter(torch.ones(self.count))
        self.signed: list[tuple[bool, bool]] = [(True, True)] * self.count
        self.enabled = False
        self.kernels: Kernels = EAGER
        self._readers = [[layers[name] if layers and name else None for name in a.readers] for a in additions]
        self._index = {place: index for index, place in enumerate(self.places)}
        self._tables = torch.empty(0)

    def install(self, model: nn.Module) -> None:
        """Quantize the additions of `model` from now on, whenever the model runs after `enable`.

        Raises:
            SbsError: the model already has an attribute with the name of the clip values.
        """
        for name, clip in zip(PARAMETERS, (self.clip_lhs, self.clip_rhs), strict=True):
            if hasattr(model, name):
                raise SbsError(f"the model has a {name}, a name that sbs-train needs for itself; rename it")
            model.register_parameter(name, clip)
        Interceptor(self._at, places=self.places, active=self._is_enabled).install(model)

    def enable(self, signed: list[tuple[bool, bool]], grids: tuple[Grid, Grid] = GRIDS) -> None:
        """Turn quantization on.

        Args:
            signed: which operands take negative values.
            grids: grids of non-negative and of signed layer inputs; operands use their 8-bit level.
        """
        self.signed, self.enabled = signed, bool(self.count)
        self._tables = torch.stack([level_table(grid)[grid.bits.index(INT8_BITS)] for grid in grids])[:, None]

    def clip(self, index: int, side: int) -> Tensor:
        """Clip value (0-d) of the left (0) or right (1) operand of an addition."""
        own = (self.clip_lhs, self.clip_rhs)[side][index]
        layer = self._readers[index][side]
        # Adds zero times the operand's own value: distributed training waits for the gradients of all parameters.
        return own if layer is None else layer.clip_a + 0 * own

    @torch.no_grad()
    def release(self) -> None:
        """Give operands clip values of their own where the layer that reads them left 8 bits."""
        for index, pair in enumerate(self._readers):
            for side, layer in enumerate(pair):
                if layer is not None and layer.bits_a != INT8_BITS:
                    (self.clip_lhs, self.clip_rhs)[side][index] = layer.clip_a
                    pair[side] = None

    @torch.no_grad()
    def set_clips(self, clips: Sequence[tuple[float, float]]) -> None:
        """Set the clip values of all operands; layers no longer share theirs."""
        self._readers = [[None, None] for _ in self._readers]
        for index, pair in enumerate(clips):
            self.clip_lhs[index], self.clip_rhs[index] = pair

    def quantized(self, index: int, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        """The quantized operands of one addition."""
        signed_lhs, signed_rhs = self.signed[index]
        return (
            self._quantize(lhs, self.clip(index, 0), signed_lhs),
            self._quantize(rhs, self.clip(index, 1), signed_rhs),
        )

    def _quantize(self, x: Tensor, clip: Tensor, signed: bool) -> Tensor:
        if self._tables.device != x.device or self._tables.dtype != clip.dtype:
            self._tables = self._tables.to(clip)
        table_K4, gates_J = self._tables[int(signed)], self._tables.new_zeros(0)
        return quantize(x, Sharing(clip_K=clip.view(1), gates_J=gates_J, table_K4=table_K4, kernels=self.kernels))

    def _at(self, place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantized(self._index[place], lhs, rhs)

    def _is_enabled(self) -> bool:
        return self.enabled


def uninstall_adds(model: nn.Module) -> None:
    """Undo `ResidualAdds.install`; works on a copy of a model as well."""
    if uninstall(model):
        for name in PARAMETERS:
            delattr(model, name)


def additions_of(model: nn.Module, example: Example, layers: Mapping[str, nn.Module] | None = None) -> list[Addition]:
    """The additions of two feature maps in one forward pass, each with the first of `layers` that reads an operand.

    `example` holds two samples or more: with one, a tensor that is equal for all samples would pass for a feature map.
    """
    read: list[tuple[Tensor, int, str]] = []
    added: list[tuple[Place, tuple[Tensor, int], tuple[Tensor, int], bool]] = []

    def see(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        added.append((place, (lhs, lhs._version), (rhs, rhs._version), torch.is_grad_enabled()))
        return lhs, rhs

    def note(layer: str, x: Tensor) -> None:
        read.append((x, x._version, layer))

    def reader(tensor: Tensor, version: int) -> str | None:
        # The tensor's version shows an in-place operation between two readers.
        return next((name for x, at, name in read if x is tensor and at == version), None)

    hooks = [
        layer.register_forward_pre_hook(lambda m, x, k, n=name: note(n, argument(x, k)), with_kwargs=True)
        for name, layer in (layers or {}).items()
    ]
    try:
        # With gradients, so that parts the network runs under no_grad can be told.
        with torch.enable_grad(), intercept_additions(model, see, copies=False):
            example.run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        Addition(place=place, readers=(reader(*lhs), reader(*rhs)), float_reason="" if gradients else WITHOUT_GRADIENTS)
        for place, lhs, rhs, gradients in added
    ]
