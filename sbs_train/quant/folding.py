"""The float network inside a quantizable one, and what BatchNorm makes of its layers.

Shapes: O output channels; `folded_affine` gives factor_O and bias_O of `factor_O * (W x) + bias_O`.
"""

import copy

import torch
from torch import Tensor, nn

from sbs_train.quant.adds import uninstall_adds
from sbs_train.quant.layers import SBSConv2d, SBSLayer, SBSLinear, sbs_layers

SCALE_MIN = 1e-8
"""Smallest weight scale after folding, but for tiny weights: TensorRT refuses 0, which a dead channel would have."""

BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy with float layers in place of the SBS ones and no quantizers, in eval mode."""
    model = copy.deepcopy(model)
    uninstall_adds(model)
    for name, layer in list(sbs_layers(model)):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _plain_layer(layer))
    return model.eval().requires_grad_(True)  # torch-pruning follows the autograd graph


@torch.no_grad()
def paired_batchnorms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """The BatchNorm that directly follows a layer, by the layer's name: it reads the very tensor the layer wrote.

    It may be of a subclass that does something else afterwards, such as timm's, which apply the activation.
    """
    written: list[tuple[str, Tensor, int]] = []
    pairs: dict[str, str] = {}
    calls: dict[str, int] = {}

    def wrote(name: str, output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        written.append((name, output, output._version))

    def read(name: str, input: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        for layer, tensor, version in written:
            # The version tells an in-place activation between the two.
            if tensor is input and tensor._version == version:
                pairs[layer] = name

    hooks = []
    for name, module in model.named_modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, x, y, n=name: wrote(n, y)))
        elif isinstance(module, BATCHNORMS) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(lambda m, x, n=name: read(n, x[0])))
    model(example)
    for hook in hooks:
        hook.remove()
    return {layer: norm for layer, norm in pairs.items() if calls[layer] == calls[norm] == 1}


def folded_affine(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """(factor_O, bias_O) in double: layer and BatchNorm give `factor_O * (W x) + bias_O`."""
    parameters = dict(layer.named_parameters(recurse=False))
    zero_O = torch.zeros(len(parameters["weight"]), dtype=torch.float64, device=parameters["weight"].device)
    own_O = parameters["bias"].double() if "bias" in parameters else zero_O
    if norm is None:
        return zero_O + 1, own_O
    assert isinstance(norm, BATCHNORMS)
    assert norm.running_mean is not None and norm.running_var is not None
    factor_O = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    factor_O = factor_O * norm.weight.double() if norm.affine else factor_O
    beta_O = norm.bias.double() if norm.affine else zero_O
    return factor_O, beta_O + factor_O * (own_O - norm.running_mean.double())


def folded_scale(factor_O: Tensor, step_w: float) -> Tensor:
    """`scale_O` of a layer's codes, above zero for every channel; `step_w` is the step of its weights before."""
    return (factor_O.abs() * step_w).clamp_min(min(SCALE_MIN, step_w / 100))


@torch.no_grad()
def without_batchnorm(norm: nn.Module) -> nn.Module:
    """What is left of a BatchNorm in eval mode when the layer before it has taken it over."""
    assert isinstance(norm, BATCHNORMS)
    if type(norm) in BATCHNORMS:
        return nn.Identity()
    # It divides by sqrt(1 + 0) and adds 0: exactly nothing, whoever folds it into the weights again.
    assert norm.running_mean is not None and norm.running_var is not None
    norm.eps = 0.0
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    if norm.affine:
        norm.weight.fill_(1)
        norm.bias.zero_()
    return norm


def _plain_layer(layer: SBSLayer) -> nn.Module:
    has_bias = layer.bias is not None
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, SBSConv2d):
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            has_bias,
            layer.padding_mode,
            device="meta",
        )
    else:
        assert isinstance(layer, SBSLinear)
        plain = nn.Linear(layer.in_features, layer.out_features, has_bias, device="meta")
    plain.weight = layer.weight
    plain.bias = layer.bias
    return plain
