"""Make a slim network from a masked, quantized one: channels removed, BatchNorm folded, weights as integer codes.

A convolution with codes W and a BatchNorm behind it become one convolution with

    codes' = W sign(γ)     scale_O = s_w |γ| / σ     bias_O = β - γ μ / σ  (+ γ b / σ)

so folding never changes a code except for its sign, which a symmetric grid allows. A channel whose γ is 0 gets codes 0.

Shapes: O, I output and input channels; codes_OIHW; factor_O = γ / σ.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan
from sbs_train.example import Example, floats_of
from sbs_train.network.dependencies import remove_channels
from sbs_train.network.network import Network
from sbs_train.network.trial import equal
from sbs_train.quant.folding import folded_affine, folded_scale, plain_copy, remove_batchnorm
from sbs_train.quant.interception import Place
from sbs_train.quant.layers import outputs_first

FOLD_TOLERANCE = 1e-4
"""Largest change of an output by the clamp of scales, as a part of the largest value."""


@dataclass(frozen=True, kw_only=True)
class SlimNetwork:
    """A plain float network with the outputs of the masked network, except for the quantization of activations."""

    model: nn.Module
    """The module, in eval mode, without SBS layers and without folded BatchNorms. Weights are `codes * scale_O`."""
    codes: Codes
    places: frozenset[Place]
    """Places of the additions that `codes` names."""


def slim_network(network: Network, plan: Plan) -> SlimNetwork:
    """Remove the channels that the plan drops and fold BatchNorm; `network` does not change.

    Raises:
        SbsError: codes beyond int8 (grid paper), or a structure that cannot be pruned or folded exactly.
    """
    dtype = next(network.model.parameters()).dtype
    # In double if possible, so that the checks below see mistakes instead of rounding.
    exact = exact_dtype(network.model, network.example)
    model = plain_copy(network.model).to(exact)
    example = network.example.to(exact)
    step_w: dict[str, float] = {}
    with torch.no_grad():
        for row in plan.layers:
            layer = network.layers.get(row.name)
            if layer is None:
                continue
            step_w[row.name] = 1.0
            if row.quantized:
                step_w[row.name] = plan.quantizer_w(row).step
            weight = layer.weight_codes() if row.quantized else layer.centred_weight()
            model.get_parameter(f"{row.name}.weight").copy_(weight)
    _remove_channels(model, network, plan, example)
    reference = _dequantized_copy(model, step_w)
    layers: dict[str, QuantizedLayer] = {}
    scales: dict[str, Tensor] = {}
    for row in plan.layers:
        if row.name not in network.layers:
            continue
        scale_O = _fold(model, row.name, network.batchnorms.get(row.name), step_w[row.name] if row.quantized else None)
        if row.quantized:
            scales[row.name] = scale_O.to(exact)
            layers[row.name] = _quantized_layer(model, plan, row.name, scale_O.to(dtype))
    _scale_codes(model, layers, scales)
    # Before scales are rounded to `dtype`: a deep network may amplify that rounding as much as a wrong fold.
    _check_fold(model, reference, example)
    # A code times a scale of `dtype` is exact in double, so it is rounded once, by the conversion below.
    _scale_codes(model, layers, {name: torch.from_numpy(layer.scale_O).to(exact) for name, layer in layers.items()})
    model.to(dtype)
    places = network.adds.places if plan.adds else []
    adds = {place.name: plan.quantizers_of(add) for place, add in zip(places, plan.adds, strict=True)}
    ranged = zip(places, map(plan.sum_quantizer, plan.adds), strict=True)
    sums = {place.name: quantizer for place, quantizer in ranged if quantizer is not None}
    return SlimNetwork(model=model, codes=Codes(layers=layers, adds=adds, sums=sums), places=frozenset(places))


@torch.no_grad()
def exact_dtype(model: nn.Module, example: Example) -> torch.dtype:
    """float64, or float32 for a network whose code fixes float32."""
    try:
        example.to(torch.float64).run(copy.deepcopy(model).eval().double())
    except RuntimeError:  # torch's error for operands of different types
        return torch.float32
    return torch.float64


def _remove_channels(model: nn.Module, network: Network, plan: Plan, example: Example) -> None:
    """Remove the channels that the plan does not keep, group by group."""
    pruned = [group for group in plan.groups if len(group.kept) < group.size]
    removed = {group.producers[0]: sorted(set(range(group.size)) - set(group.kept)) for group in pruned}
    remove_channels(model, example, removed)
    # Tracing runs the network with gradients; some networks keep tensors until they run again.
    model.train().eval()
    with torch.no_grad():
        example.run(model)
    for row in plan.layers:
        if row.name not in network.layers:
            continue
        weight = outputs_first(model.get_submodule(row.name))
        expected = (row.kept_out, 1 if row.kind == "depthwise" else row.kept_in)
        grouped = getattr(model.get_submodule(row.name), "groups", 1) > 1 and row.kind != "depthwise"
        if tuple(weight.shape[:2]) != expected and not grouped:
            raise SbsError(
                f"layer {row.name}: pruning left {tuple(weight.shape[:2])} channels, the plan keeps {expected}; "
                f"report it, and train with --mode quantize until then"
            )


def _dequantized_copy(model: nn.Module, step_w: dict[str, float]) -> nn.Module:
    """The pruned network before folding, with real weights instead of codes: the reference for the check of folding."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for name, step in step_w.items():
            reference.get_parameter(f"{name}.weight").mul_(step)
    return reference


@torch.no_grad()
def _fold(model: nn.Module, name: str, batchnorm_name: str | None, step_w: float | None) -> Tensor:
    """Fold the BatchNorm into the layer, in place; returns `scale_O` of its codes, or 1 if `step_w` is None (float)."""
    layer = model.get_submodule(name)
    weight = outputs_first(layer)
    norm = model.get_submodule(batchnorm_name) if batchnorm_name is not None else None
    factor_O, bias_O = folded_affine(layer, norm)
    if batchnorm_name is not None:
        layer.bias = nn.Parameter(bias_O.to(weight.dtype))
        assert norm is not None
        remove_batchnorm(norm)
    shape = (-1, *[1] * (weight.dim() - 1))
    if step_w is None:
        weight.mul_(factor_O.view(shape))
        return torch.ones_like(factor_O)
    weight.mul_(torch.sign(factor_O).view(shape))
    return folded_scale(factor_O, step_w)


def _quantized_layer(model: nn.Module, plan: Plan, name: str, scale_O: Tensor) -> QuantizedLayer:
    """The layer's codes, which `_fold` left in its weights, and its scales."""
    row = plan.layer(name)
    if plan.level_a(row).odd:
        raise SbsError(f"layer {name}: grid paper has no zero among its signed input codes; train with --grid int8")
    codes = np.ascontiguousarray(outputs_first(model.get_submodule(name)).detach().numpy())
    return QuantizedLayer(
        codes=codes.astype(np.int8),
        scale_O=scale_O.numpy(),
        input=plan.quantizer_a(row),
        output=plan.output_quantizers().get(name),
    )


@torch.no_grad()
def _scale_codes(model: nn.Module, layers: dict[str, QuantizedLayer], scales: dict[str, Tensor]) -> None:
    """Write `codes * scale_O` into the weights of the layers."""
    for name, layer in layers.items():
        weight = outputs_first(model.get_submodule(name))
        codes = torch.from_numpy(layer.codes).to(weight.dtype)
        weight.copy_(codes * scales[name].view(-1, *[1] * (weight.dim() - 1)))


@torch.no_grad()
def _check_fold(model: nn.Module, reference: nn.Module, example: Example) -> None:
    """SbsError if outputs differ from those before folding, as with a wrongly paired BatchNorm."""
    x = example.random(0)
    if not equal(floats_of(x.run(model)), floats_of(x.run(reference)), FOLD_TOLERANCE):
        raise SbsError(
            f"folding BatchNorm changed the network by over {FOLD_TOLERANCE} of its output; report the model"
        )
