"""A slim network with its quantizers, run by torch as an engine runs it."""

from contextlib import ExitStack

import torch
from torch import Tensor

from calib.calls import argument
from sbs_deploy.export.slim import SlimNetwork
from sbs_train.contract.grid import Quantizer
from sbs_train.quant.interception import Place, intercept_additions


@torch.no_grad()
def run_quantized(slim: SlimNetwork, x_NCHW: Tensor) -> Tensor:
    """The slim model with inputs of layers and operands of additions rounded to their grids, as the engine does."""

    def rounded(x: Tensor, to: Quantizer) -> Tensor:
        return torch.clamp(torch.round(x / to.step), to.code_min, to.code_max) * to.step

    def operands(place: Place, lhs: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        to_lhs, to_rhs = slim.codes.adds[place.name]
        return rounded(lhs, to_lhs), rounded(rhs, to_rhs)

    with ExitStack() as stack:
        for name, layer in slim.codes.layers.items():
            hook = slim.model.get_submodule(name).register_forward_pre_hook(
                lambda m, x, k, q=layer.input: ((rounded(argument(x, k), q),), {}), with_kwargs=True
            )
            stack.callback(hook.remove)
        stack.enter_context(intercept_additions(slim.model, operands, slim.places))
        logits: Tensor = slim.model(x_NCHW)
    return logits
