"""Multi-path searches for search_step.py: every layer computes one branch a choice of bits.

What DARTS (arXiv 1806.09055) and DNAS (arXiv 1812.00090) do for bitwidths: layer output = sum_p softmax(theta)_p *
conv(A_p(x), W_p(w)), with learned clip values and the expected BOPs in the loss. It quantizes with the very kernels of
plain QAT, so what it costs beyond plain QAT is the paths. Weights and thetas learn in one pass, which flatters it:
DARTS takes two. The first and the last layer have one path of 8 bits.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from step_method import Method, Setting, inputs_of, method
from step_sbs import CLIP_PART, CLIP_SIGMAS, float_model, kernels, layer_macs, level_rows
from torch import Tensor, nn

BITS = (2, 4, 8)
Paths = tuple[tuple[int, int], ...]
"""(bits of the weights, bits of the activations) of every branch."""
SAME_BITS: Paths = tuple((b, b) for b in BITS)
ALL_PAIRS: Paths = tuple(itertools.product(BITS, BITS))
"""The choices SBS has: bits of weights and activations apart."""
WEIGHT_OF_COST = 0.05


class _Quantize(torch.autograd.Function):
    """Plain quantization at one level; keeps its input, and its output, which the layer behind it keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, row_4: Tensor, passes: Any) -> Tensor:
        result: Tensor = passes.forward(x.detach(), clip, row_4)
        ctx.save_for_backward(x, result, clip, row_4)
        ctx.passes = passes
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        x, quantized, clip, row_4 = ctx.saved_tensors
        dx, dclip = ctx.passes.backward(grads[0], x.detach(), quantized, clip, row_4)
        return dx, dclip, None, None


class MultiPath(nn.Module):
    """A convolution or linear layer with one quantized path a choice of bits."""

    rows_w: Tensor
    rows_a: Tensor

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, paths: Paths, *, signed: bool, clip_a: float, compiled: bool
    ) -> None:
        super().__init__()
        self.layer, self.paths, self.passes = layer, paths, kernels(compiled=compiled)
        self.bits = tuple(dict.fromkeys(bits_w for bits_w, _ in paths))
        rows = [level_rows(b, signed=signed) for b in self.bits]
        self.register_buffer("rows_w", torch.stack([row_w for row_w, _ in rows]))
        self.register_buffer("rows_a", torch.stack([row_a for _, row_a in rows]))
        self.clip_w = nn.ParameterList(torch.tensor(CLIP_SIGMAS) for _ in self.bits)
        self.clip_a = nn.ParameterList(torch.tensor(clip_a) for _ in self.bits)
        self.theta = nn.Parameter(torch.zeros(len(paths)))

    def forward(self, x: Tensor) -> Tensor:
        deviation = self.layer.weight.detach().std()
        a: dict[int, Tensor] = {}
        w: dict[int, Tensor] = {}
        for k, b in enumerate(self.bits):
            a[b] = _Quantize.apply(x, self.clip_a[k], self.rows_a[k], self.passes)
            w[b] = _Quantize.apply(self.layer.weight, self.clip_w[k] * deviation, self.rows_w[k], self.passes)
        paths = [self._path(a[bits_a], w[bits_w]) for bits_w, bits_a in self.paths]
        if len(paths) == 1:
            return paths[0]
        shares = self.theta.softmax(0)
        y = shares[0] * paths[0]
        for share, path in zip(shares[1:], paths[1:], strict=True):
            y = torch.addcmul(y, path, share)
        return y

    def bops(self, macs: int) -> Tensor:
        """Expected BOPs (0-d) of the layer."""
        costs = torch.tensor([float(macs * bits_w * bits_a) for bits_w, bits_a in self.paths], device=self.theta.device)
        return self.theta.softmax(0) @ costs

    def _path(self, x: Tensor, weight: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Conv2d):
            y_NCHW: Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
            return y_NCHW
        return F.linear(x, weight, self.layer.bias)


def multi_path(setting: Setting, *, paths: Paths = SAME_BITS, compiled: bool = False) -> Method:
    """Training of weights, clip values and path weights together."""
    model = float_model(setting)
    macs = layer_macs(setting)
    layers = {name: model.get_submodule(name) for name in macs}
    found = inputs_of(model, layers, setting.data()[0])
    names = list(macs)
    swapped: dict[str, MultiPath] = {}
    for name, layer in layers.items():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        signed, largest = found[name]
        own = ((8, 8),) if name in (names[0], names[-1]) else paths
        clip_a = CLIP_PART * largest
        swapped[name] = MultiPath(layer, own, signed=signed, clip_a=clip_a, compiled=compiled).to(setting.device)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, swapped[name])
    x_NCHW, y_N = setting.data()
    scale = math.log(sum(macs.values()) * 32 * 32)

    def loss(index: int) -> Tensor:
        cross_entropy = F.cross_entropy(model(x_NCHW), y_N)
        bops = torch.stack([layer.bops(macs[name]) for name, layer in swapped.items()]).sum()
        return cross_entropy + WEIGHT_OF_COST * (torch.log(bops) - scale)

    note = f"{len(paths)} branches a layer, softmax over their outputs; our quantizer"
    bits = "2/2, 4/4, 8/8" if paths == SAME_BITS else "2, 4, 8 / 2, 4, 8"
    return method(f"multi-path search, {len(paths)} paths", bits, note, model, setting, loss)
