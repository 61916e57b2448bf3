"""Residual additions: both operands at 8 bits, so that an INT8 engine keeps the whole block in integers.

ONNX Runtime runs a convolution as an integer kernel only if its output is quantized as well; where it feeds an
addition, that takes Q/DQ on the addition's operands. An addition is an operator in somebody's `forward`, not a module,
so it is intercepted while the model runs, and known by its place in the order of execution.

An operand that a quantized layer reads as well takes that layer's clip value, as long as the layer stays at 8 bits:
one tensor then has one quantizer, and an engine quantizes it once.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sbs_train.contract.grid import Grid, make_grid
from sbs_train.quant.layers import SBSLayer
from sbs_train.quant.quantizer import level_table, quantize

BITS = 8
GRIDS = (make_grid("unsigned", (BITS,)), make_grid("signed", (BITS,)))
CLIP_MIN = 1e-6
PARAMETERS = ("residual_clip_lhs", "residual_clip_rhs")

Handler = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Index of an addition and its operands to the operands that are added instead."""

Readers = tuple[str | None, str | None]
"""Layers that read the left and the right operand of an addition as well."""

_ADDITIONS = frozenset(
    (torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__, torch.Tensor.__radd__)
)


class intercept_additions(TorchFunctionMode):
    """Hands the operands of every addition of two feature maps to a handler, inside a `with` block.

    Additions are counted from the start of the block: one block, one forward pass.
    """

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self.handler = handler
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADDITIONS and len(args) == 2 and not kwargs and _are_feature_maps(*args):
            index, self.count = self.count, self.count + 1
            # Disabled inside a handler by torch itself: what it adds is not intercepted again.
            return torch.add(*self.handler(index, *args))
        return func(*args, **(kwargs or {}))


class ResidualAdds:
    """The operand quantizers of all additions of a model.

    Their clip values `residual_clip_lhs` and `residual_clip_rhs` (A additions each) are parameters of the model itself,
    so they move, train and are saved with it; no child is added, since a root `Sequential` would run it. Quantization
    is off until `enable`.
    """

    def __init__(self, additions: Sequence[Readers], layers: Mapping[str, SBSLayer] | None = None) -> None:
        """
        Args:
            additions: as `additions_of` finds them.
            layers: those that `additions` names.
        """
        self.count = len(additions)
        self.clip_lhs = nn.Parameter(torch.ones(self.count))
        self.clip_rhs = nn.Parameter(torch.ones(self.count))
        self.signed: list[tuple[bool, bool]] = [(True, True)] * self.count
        self.enabled = False
        self._readers = [[layers[name] if layers and name else None for name in pair] for pair in additions]
        self._running: list[ExitStack] = []
        self._tables = torch.empty(0)

    def install(self, model: nn.Module) -> None:
        """Quantize the additions of `model` from now on, whenever it runs and this is enabled."""
        for name, clip in zip(PARAMETERS, (self.clip_lhs, self.clip_rhs), strict=True):
            model.register_parameter(name, clip)
        model.register_forward_pre_hook(self._enter)
        model.register_forward_hook(self._leave, always_call=True)

    def enable(self, signed: list[tuple[bool, bool]], grids: tuple[Grid, Grid] = GRIDS) -> None:
        """Turn quantization on.

        Args:
            signed: which operands take negative values.
            grids: whose 8-bit level the operands are on, of non-negative ones and of the others; those of the layers.
        """
        self.signed, self.enabled = signed, bool(self.count)
        self._tables = torch.stack([level_table(grid)[grid.bits.index(BITS)] for grid in grids])[:, None]

    def clip(self, index: int, side: int) -> Tensor:
        """Clip value (0-d) of the left (0) or right (1) operand of an addition."""
        own = (self.clip_lhs, self.clip_rhs)[side][index]
        layer = self._readers[index][side]
        # Zero times its own: a parameter without gradient would make distributed training wait for it.
        return own if layer is None else layer.clip_a + 0 * own

    @torch.no_grad()
    def release(self) -> None:
        """Give operands clip values of their own where the layer that reads them is not at 8 bits (any more)."""
        for index, pair in enumerate(self._readers):
            for side, layer in enumerate(pair):
                if layer is not None and layer.bits_a != BITS:
                    (self.clip_lhs, self.clip_rhs)[side][index] = layer.clip_a
                    pair[side] = None

    @torch.no_grad()
    def set_clips(self, clips: Sequence[tuple[float, float]]) -> None:
        """Clip values of all operands, their own from now on."""
        self._readers = [[None, None] for _ in self._readers]
        for index, pair in enumerate(clips):
            self.clip_lhs[index], self.clip_rhs[index] = pair

    def quantized(self, index: int, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        """The operands of one addition on their 8-bit grids."""
        signed_lhs, signed_rhs = self.signed[index]
        return (
            self._quantize(lhs, self.clip(index, 0), signed_lhs),
            self._quantize(rhs, self.clip(index, 1), signed_rhs),
        )

    @torch.no_grad()
    def clamp_clips(self) -> None:
        """Keep learned clip values positive; call after every optimizer step."""
        self.clip_lhs.clamp_min_(CLIP_MIN)
        self.clip_rhs.clamp_min_(CLIP_MIN)

    def _quantize(self, x: Tensor, clip: Tensor, signed: bool) -> Tensor:
        if self._tables.device != x.device or self._tables.dtype != clip.dtype:
            self._tables = self._tables.to(clip)
        return quantize(x, clip.view(1), self._tables.new_zeros(0), self._tables[int(signed)])

    def _enter(self, model: nn.Module, args: Any) -> None:
        if self.enabled:
            stack = ExitStack()
            stack.enter_context(intercept_additions(self.quantized))
            self._running.append(stack)

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._running.pop().close()


def uninstall_adds(model: nn.Module) -> None:
    """Undo `ResidualAdds.install`, on a copy of a model as well."""
    for name in PARAMETERS:
        if name in model._parameters:
            delattr(model, name)
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), ResidualAdds)]:
            del hooks[key]
            model._forward_hooks_always_called.pop(key, None)


@torch.no_grad()
def additions_of(model: nn.Module, example: Tensor, layers: Mapping[str, nn.Module] | None = None) -> list[Readers]:
    """The additions of two feature maps in one forward pass, each with the first of `layers` that reads an operand."""
    read: list[tuple[Tensor, int, str]] = []
    added: list[tuple[tuple[Tensor, int], tuple[Tensor, int]]] = []

    def see(index: int, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        added.append(((lhs, lhs._version), (rhs, rhs._version)))
        return lhs, rhs

    def reader(tensor: Tensor, version: int) -> str | None:
        # The version tells an in-place operation between two readers.
        return next((name for x, at, name in read if x is tensor and at == version), None)

    hooks = [
        layer.register_forward_pre_hook(lambda m, x, n=name: read.append((x[0], x[0]._version, n)))
        for name, layer in (layers or {}).items()
    ]
    try:
        with intercept_additions(see):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(reader(*lhs), reader(*rhs)) for lhs, rhs in added]


def _are_feature_maps(lhs: Any, rhs: Any) -> bool:
    tensors = isinstance(lhs, Tensor) and isinstance(rhs, Tensor)
    if not tensors or isinstance(lhs, nn.Parameter) or isinstance(rhs, nn.Parameter):
        return False
    return bool(lhs.dim() >= 3 and lhs.shape == rhs.shape and lhs.is_floating_point())
