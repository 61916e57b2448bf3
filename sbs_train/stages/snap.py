"""Biases on the grid of the integer accumulator: the last thing that is done to a network before it is measured."""

import torch

from sbs_train.contract.plan import Plan
from sbs_train.quant.folding import folded_affine, folded_scale
from sbs_train.stages.plans import Network


@torch.no_grad()
def snap_biases(network: Network, plan: Plan) -> None:
    """Move every folded bias to the nearest whole step `step_a * scale_O` of its layer's accumulator, in place.

    Integer kernels add biases there and nowhere else. On coarse grids half a step is enough to make roundings fall the
    other way, layer after layer; a network that is trained, measured and exported with such biases has none of that.
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
