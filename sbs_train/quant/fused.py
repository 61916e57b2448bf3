"""Quantize the input and the weights of a layer and run it, as one step of the autograd graph.

As separate steps a quantizer keeps its input for the backward pass and the layer keeps the quantized tensor: two
activations where float training keeps one. The fused step keeps only the input, which the ReLU before it keeps anyway,
and quantizes again in the backward pass. That costs no extra pass, since the gradient of the clip value needs the
quantized input as well.

Under autocast the quantized tensors are float32, and the operation alone runs in the shorter type.

Shapes: x_NCHW or x_NI; weight_OIHW or weight_OI; mask_I.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbs_train.quant.quantizer import Sharing


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution with zero padding, forward and backward."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
        """Gradients of the input, the weights and the bias; None where not `needed`."""
        bias_sizes = [len(weight)] if needed[2] else None
        found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            bias_sizes,
            self.stride,
            self.padding,
            self.dilation,
            False,
            (0, 0),
            self.groups,
            needed,
        )
        return found


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer over the last axis, forward and backward."""

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: list[bool]) -> tuple[Tensor, ...]:
        """Gradients of the input, the weights and the bias."""
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        return grad @ weight, rows.t() @ inputs, rows.sum(0)


Operation = Convolution | Linear


class _SharedLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask_I: Tensor | None,
        what: tuple[Operation, Sharing, Sharing],
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask_I)
        ctx.what = operation, sharing_a, sharing_w = what
        return operation.run(sharing_a.quantize(x), masked(sharing_w.quantize(weight), mask_I), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, weight, mask_I = ctx.saved_tensors
        operation, sharing_a, sharing_w = ctx.what
        quantized_x, quantized_w = sharing_a.quantize(x), sharing_w.quantize(weight)
        needs, dtype = ctx.needs_input_grad, grads[0].dtype  # the type the operation ran in
        operands = quantized_x.to(dtype), masked(quantized_w, mask_I).to(dtype)
        # The clip value's gradient needs the input's gradient even where the input is data.
        dx, dw, dbias = operation.gradients(grads[0], *operands, [True, True, needs[2]])
        dmask_I = None
        if mask_I is not None:
            if needs[3]:
                dmask_I = (dw * quantized_w).transpose(0, 1).flatten(1).sum(1)
            dw = masked(dw, mask_I)
        dx, *others_a = sharing_a.gradients(dx, x, quantized_x, needs[5:8])
        dw, *others_w = sharing_w.gradients(dw, weight, quantized_w, needs[8:11])
        return dx, dw, dbias if needs[2] else None, dmask_I, None, *others_a, *others_w


def shared_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask_I: Tensor | None,
    operation: Operation,
    sharings: tuple[Sharing, Sharing],
) -> Tensor:
    """`operation` on the quantized input and weights; differentiable in all tensors, including those of the sharings.

    Args:
        mask_I: multiplies the weights of every input channel, which equals masking the input; None keeps all channels.
        sharings: the quantizers of the input and of the weights.
    """
    sharing_a, sharing_w = sharings
    apply: Callable[..., Tensor] = _SharedLayer.apply
    return apply(x, weight, bias, mask_I, (operation, sharing_a, sharing_w), *sharing_a.inputs(), *sharing_w.inputs())


def masked(weight: Tensor, mask_I: Tensor | None) -> Tensor:
    """The weights with masked input channels at zero."""
    return weight if mask_I is None else weight * mask_I.view(1, -1, *[1] * (weight.dim() - 2))
