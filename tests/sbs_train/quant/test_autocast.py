"""Under bfloat16 autocast quantizers compute in float32; the convolution or linear operation alone does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbs_train.contract.grid import make_grid
from sbs_train.quant.quantizer import rounding_errors
from sbs_train.quant.swapping import swap_layers
from tests.sbs_train.small import image_batches, small_network

bf16 = torch.bfloat16


def layer_and_input(kind, seed=0):
    torch.manual_seed(seed)
    layer = {"conv": nn.Conv2d(8, 6, 3, padding=1), "valid": nn.Conv2d(8, 6, 3, padding="same"), "fc": nn.Linear(8, 6)}
    model = nn.Sequential(layer[kind])
    (swapped,) = swap_layers(model).values()
    swapped.set_grids(make_grid("weight", (2, 4, 8)), make_grid("unsigned", (2, 4, 8)))
    swapped.set_clips([1.5, 2.5, 3.0], [0.8, 1.2, 1.5])
    x = torch.rand(4, 8) * 2 if kind == "fc" else torch.rand(4, 8, 5, 5) * 2
    return swapped, x


def operation(layer, x, weight, bias):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("kind", ["conv", "valid", "fc"])
@pytest.mark.parametrize("short_input", [False, True])
def test_the_operation_reads_what_float32_quantizers_wrote(kind, short_input):
    layer, x = layer_and_input(kind)
    x = x.to(bf16) if short_input else x
    with torch.no_grad():
        quantized_x, quantized_w = layer.quantized_input(x.float()), layer.quantized_weight()
        with torch.autocast("cpu", bf16):
            assert layer.quantized_input(x).dtype == layer.quantized_weight().dtype == torch.float32
            assert torch.equal(layer.quantized_input(x), quantized_x)
            found = layer(x)
        expected = operation(layer, quantized_x.to(bf16), quantized_w.to(bf16), layer.bias.to(bf16))
    assert found.dtype == bf16 and torch.equal(found, expected)


ROUNDINGS = 4
"""On the way of a product into a gradient, each 2^-9 of it at most, as bfloat16 holds 8 bits: of the incoming gradient,
of the quantized operand and of the result. The fourth leaves room for sums that a processor keeps in bfloat16 in part.
"""


def largest_gradients(layer, x, grad):
    """Gradients if no term cancelled another, by leaf: what roundings of the terms are a fraction of."""
    quantized = layer.quantized_input(x), layer.quantized_weight()
    plain = [tensor.detach().abs().requires_grad_() for tensor in (*quantized, layer.bias)]
    operation(layer, *plain).backward(grad.abs())
    found = {x: plain[0].grad, layer.weight: plain[1].grad, layer.bias: plain[2].grad}
    leaves = (layer.clip_a, layer.gates_a, layer.probe_a), (layer.clip_w, layer.gates_w, layer.probe_w)
    for tensor, own, terms in zip(quantized, leaves, plain, strict=False):
        totals = [torch.zeros_like(leaf) for leaf in own]
        for value, most in zip(tensor.flatten(), terms.grad.flatten(), strict=True):
            for total, part in zip(totals, torch.autograd.grad(value, own, retain_graph=True), strict=True):
                total += part.abs() * most
        found |= dict(zip(own, totals, strict=True))
    return found


@pytest.mark.parametrize("kind", ["conv", "valid", "fc"])
def test_gradients_are_those_of_float32_up_to_the_operations_rounding(kind):
    gradients = []
    for enabled in (True, False):
        layer, x = layer_and_input(kind)
        x = (x if kind == "fc" else x[..., :3, :3]).to(bf16).float().requires_grad_()
        layer.gates_w, layer.gates_a = (torch.tensor([1.0, 0.0], requires_grad=True) for _ in "wa")
        layer.probe_w, layer.probe_a = torch.zeros(2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
        with torch.autocast("cpu", bf16, enabled=enabled):
            y = layer(x.to(bf16) if enabled else x)
        grad = torch.linspace(-1, 2, y.numel()).view(y.shape)
        (y.float() * grad).sum().backward()
        leaves = [x, layer.weight, layer.bias, layer.clip_w, layer.clip_a, layer.gates_w, layer.gates_a]
        leaves += [layer.probe_w, layer.probe_a]
        assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)
        gradients.append([leaf.grad.clone() for leaf in leaves])
    largest = largest_gradients(layer, x, grad)
    for short, exact, leaf in zip(*gradients, leaves, strict=True):
        assert ((short - exact).abs() <= ROUNDINGS * 2**-9 * largest[leaf] + 1e-6).all()


def test_metrics_are_measured_in_float32():
    layer, x = layer_and_input("conv")
    clip_K = torch.tensor([0.8, 1.2, 1.5])
    errors = rounding_errors(x.to(bf16), clip_K, layer.table_a)
    assert errors.dtype == torch.float32
    assert torch.equal(errors, rounding_errors(x.to(bf16).float(), clip_K, layer.table_a))


def test_residual_additions_stay_in_float32():
    network = small_network()
    (x, _), *_ = image_batches(network, 1)
    added = []
    quantized = network.adds.quantized

    def watch(index, lhs, rhs):
        lhs, rhs = quantized(index, lhs, rhs)
        added.append((lhs.dtype, rhs.dtype))
        return lhs, rhs

    network.adds.quantized = watch
    with torch.autocast("cpu", bf16), torch.no_grad():
        network.model.eval()(x)
    assert len(added) == network.adds.count and set(added) == {(torch.float32, torch.float32)}
