"""Fit weights to integers without training: filters of equal range, and biases on the accumulator's grid.

Shapes: O output channels.
"""

import torch

from sbs_train.contract.plan import Plan
from sbs_train.network.network import Network
from sbs_train.quant.folding import BATCHNORMS, folded_affine, folded_scale
from sbs_train.quant.layers import outputs_first

LEAST = 1e-3
"""Smallest factor, so that a dead filter stays dead."""


@torch.no_grad()
def equalise_filters(network: Network) -> None:
    """Give the filters of every layer that a BatchNorm follows the same largest weight, in place.

    All filters of a layer share one clip value. In a trained network some filters are a hundred times larger than
    others, most of all in depthwise layers, and small filters would round to zero. Without training, the factor moves
    from the weights into the BatchNorm behind them, which keeps the output (Nagel et al., ICCV 2019, section 4.1,
    equalise across layers).
    """
    for name, norm_name in network.batchnorms.items():
        norm = network.model.get_submodule(norm_name)
        layer = network.layers.get(name)
        if layer is None:
            continue
        assert isinstance(norm, BATCHNORMS) and norm.running_mean is not None and norm.running_var is not None
        weight = outputs_first(layer)
        largest_O = weight.abs().flatten(1).amax(1)
        factor_O = (largest_O / largest_O.mean().clamp_min(1e-30)).clamp_min(LEAST)
        # var + eps shrinks by the square of the factor; var itself cannot fall below 0.
        whole_O = norm.running_var + norm.eps
        factor_O = torch.minimum(factor_O, (whole_O / norm.eps).sqrt())
        weight.div_(factor_O.view(-1, *[1] * (weight.dim() - 1)))
        bias = layer._parameters["bias"]
        if bias is not None:
            bias.div_(factor_O)
        norm.running_mean.div_(factor_O)
        norm.running_var.copy_((whole_O / factor_O**2 - norm.eps).clamp_min(0))


@torch.no_grad()
def snap_biases(network: Network, plan: Plan) -> None:
    """Move every folded bias to the nearest whole step `step_a * scale_O` of its layer's accumulator, in place.

    Integer kernels add biases in the accumulator. On coarse grids half a step of error flips roundings, layer after
    layer; a network that is trained, measured and exported with snapped biases has no such error.
    """
    for row in plan.layers:
        if not row.quantized:
            continue
        holder = network.model.get_submodule(network.batchnorms.get(row.name, row.name))
        norm = holder if row.name in network.batchnorms else None
        bias = dict(holder.named_parameters(recurse=False)).get("bias")
        if bias is not None:
            factor_O, bias_O = folded_affine(network.layers[row.name], norm)
            scale_O = folded_scale(factor_O, plan.quantizer_w(row).step)
            step_O = scale_O * plan.quantizer_a(row).step
            bias.add_(torch.round(bias_O / step_O) * step_O - bias_O)
