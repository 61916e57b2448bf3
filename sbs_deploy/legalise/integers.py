"""Changes of the integers that a graph is made from: coarse activations on the full 8 bits, layers left in float."""

from collections.abc import Collection
from dataclasses import replace

from sbs_deploy.export.codes import Codes
from sbs_deploy.export.dialects import Dialect
from sbs_train.contract.grid import Quantizer


def promoted(codes: Codes, dialect: Dialect) -> Codes:
    """Activations that do not use all codes of the container on all of them, with the plan's clip value.

    An engine computes them in 8 bits anyway: this drops the Clip that keeps the coarse grid, and with it the rounding
    that the network was trained with. Weights keep their codes. Where the container is uint8, activations of 8 bits
    that are never negative get 255 codes instead of 127.
    """

    def promote(quantizer: Quantizer) -> Quantizer:
        low, high = dialect.container_range(quantizer.signed)
        low = low if quantizer.signed else 0
        if quantizer.code_max >= high:
            return quantizer
        clip = quantizer.step * quantizer.code_max
        return Quantizer(step=clip / high, code_min=low, code_max=high)

    layers = {name: replace(layer, input=promote(layer.input)) for name, layer in codes.layers.items()}
    return Codes(layers=layers, adds={name: (promote(lhs), promote(rhs)) for name, (lhs, rhs) in codes.adds.items()})


def without_layers(codes: Codes, names: Collection[str]) -> Codes:
    """The same with some layers left in float: their weights are the plan's, their inputs are no longer rounded."""
    return replace(codes, layers={name: layer for name, layer in codes.layers.items() if name not in names})
