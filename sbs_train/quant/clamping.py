"""Learned clip values stay positive; in loops that do not know of them, by a hook before every pass with gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sbs_train.quant.adds import CLIP_MIN as OPERAND_MIN
from sbs_train.quant.adds import ResidualAdds
from sbs_train.quant.layers import CLIP_MIN, SBSLayer
from sbs_train.quant.scale import FACTOR_MIN


@torch.no_grad()
def clamp_clips(layers: Sequence[SBSLayer], adds: ResidualAdds) -> None:
    """Raise learned clip values to the least that they may have; call after every optimizer step."""
    for clips, least in (
        ([layer.clip_w for layer in layers], FACTOR_MIN),
        ([layer.clip_a for layer in layers], CLIP_MIN),
        ([adds.clip_lhs, adds.clip_rhs] if adds.count else [], OPERAND_MIN),
    ):
        if clips:
            torch._foreach_clamp_min_(tuple(clips), least)


class Clamping:
    """A forward pre-hook; copies of the model get one for their own layers."""

    def __init__(self, layers: Iterable[SBSLayer], adds: ResidualAdds) -> None:
        self._layers, self._adds = list(layers), adds

    def __call__(self, model: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled():
            clamp_clips(self._layers, self._adds)


def uninstall_clamping(model: nn.Module) -> None:
    """Remove the hook from a model, or from a copy of one."""
    for key in [key for key, hook in model._forward_pre_hooks.items() if isinstance(hook, Clamping)]:
        del model._forward_pre_hooks[key]
