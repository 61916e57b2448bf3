"""A quantized layer as one step of the graph, against its quantizers and the layer one after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.grid import make_grid
from sbs_train.quant.swapping import swap_layers
from tests.sbs_train.quant.decomposed import quantize, quantize_decomposed

CONVOLUTIONS = {
    "plain": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=1, bias=False),
    "wide": dict(kernel_size=(1, 3), padding=(0, 2), dilation=(1, 2)),
    "grouped": dict(kernel_size=3, groups=2),
    "depthwise": dict(kernel_size=3, groups=8),
    "same": dict(kernel_size=3, padding="same"),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
}
CLIPS_W, CLIPS_A = [1.5, 2.5, 3.0], [0.5, 0.8, 1.1]


def layer_and_input(kind, seed=0):
    torch.manual_seed(seed)
    float_layer = nn.Linear(8, 6) if kind == "linear" else nn.Conv2d(8, 8, **CONVOLUTIONS[kind])
    layer = swap_layers(nn.Sequential(float_layer).double())["0"]
    layer.set_grids(make_grid("weight", (2, 4, 8)), make_grid("signed", (2, 4, 8)))
    for name in ("table_w", "table_a", "ratio_w", "ratio_a"):
        setattr(layer, name, getattr(layer, name).double())
    layer.set_clips(CLIPS_W, CLIPS_A)
    x = torch.randn((5, 8) if kind == "linear" else (5, 8, 7, 6), dtype=torch.float64)
    return layer.double(), x


def one_after_the_other(layer, x, quantizer):
    """The same by autograd: both quantizers, the mask, the float layer."""
    deviation = layer.weight.detach().std()
    clips_w = layer.clip_w * deviation * layer.ratio_w
    if quantizer is quantize_decomposed:
        w = quantizer(layer.weight, clips_w, layer.gates_w, layer.table_w)
        x = quantizer(x, layer.clip_a * layer.ratio_a, layer.gates_a, layer.table_a)
    else:
        w = quantizer(layer.weight, clips_w, layer.gates_w, layer.table_w, probe_MJ=layer.probe_w)
        x = quantizer(x, layer.clip_a * layer.ratio_a, layer.gates_a, layer.table_a, probe_MJ=layer.probe_a)
    if layer.mask_in is not None and layer.kind != "depthwise":
        w = w * layer.mask_in.view(1, -1, *[1] * (w.dim() - 2))
    if isinstance(layer, nn.Linear):
        return F.linear(x, w, layer.bias)
    return nn.Conv2d._conv_forward(layer, x, w, layer.bias)


def leaves_of(layer, x, gates, *, probes, mask):
    """Everything that gets a gradient, as fresh leaves in the layer; the input first."""
    layer.gates_w, layer.gates_a = (torch.tensor(gates, dtype=torch.float64, requires_grad=True) for _ in "wa")
    layer.probe_w, layer.probe_a = (
        torch.zeros(shape, dtype=torch.float64, requires_grad=True) if probes else None for shape in ((2,), (3, 2))
    )
    layer.mask_in = None
    if mask:
        layer.mask_in = torch.tensor([1.0, 0, 1, 1, 0.5, 1, 1, 1], dtype=torch.float64, requires_grad=True)
    leaves = [x, layer.weight, layer.bias, layer.clip_w, layer.clip_a, layer.gates_w, layer.gates_a]
    leaves += [layer.mask_in if layer.kind != "depthwise" else None, layer.probe_w, layer.probe_a]
    layer.zero_grad()
    return [leaf for leaf in leaves if leaf is not None]


@pytest.mark.parametrize(
    # Channels of grouped convolutions are not masked.
    ("kind", "mask"),
    [(kind, mask) for kind in (*CONVOLUTIONS, "linear") for mask in (False, True) if not (mask and kind == "grouped")],
)
def test_values_and_gradients_are_those_of_the_parts(kind, mask):
    layer, x = layer_and_input(kind)
    for gates in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]):
        for quantizer, probes in ((quantize, True), (quantize_decomposed, False)):
            results = []
            for run in (layer, lambda x, q=quantizer: one_after_the_other(layer, x, q)):
                x = x.detach().clone().requires_grad_()
                leaves = leaves_of(layer, x, gates, probes=probes, mask=mask)
                y = run(x)
                (y * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)).sum().backward()
                results.append([y.detach(), *(leaf.grad for leaf in leaves)])
            for ours, parts in zip(*results, strict=True):
                torch.testing.assert_close(ours, parts, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "depthwise", "linear"])
def test_only_the_input_and_the_weights_are_saved(kind):
    layer, x = layer_and_input(kind)
    leaves_of(layer, x.requires_grad_(), [1.0, 1.0], probes=True, mask=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    known = {x.data_ptr(), layer.weight.data_ptr()}
    assert {tensor.data_ptr() for tensor in saved if tensor.numel() > 16} == known


def test_images_need_no_gradient_for_their_clip_value_to_learn():
    layer, x = layer_and_input("plain")
    gradients = []
    for needed in (True, False):
        leaves_of(layer, x, [1.0, 0.0], probes=True, mask=False)
        layer(x.detach().requires_grad_(needed)).square().sum().backward()
        gradients.append([layer.clip_a.grad.clone(), layer.probe_a.grad.clone(), layer.weight.grad.clone()])
    assert all(map(torch.equal, *gradients))


def test_the_last_axis_of_any_input_is_linear():
    layer, _ = layer_and_input("linear")
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    results = []
    for shape in ((2, 3, 8), (6, 8)):
        leaves_of(layer, x, [1.0, 1.0], probes=False, mask=False)
        y = layer(x.view(shape))
        y.square().sum().backward()
        results.append([y.detach().flatten(), layer.weight.grad.clone(), layer.bias.grad.clone(), layer.clip_a.grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
