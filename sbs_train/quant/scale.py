"""How large the values of a tensor are, for tensors of every kind: what clip values are multiples of.

A standard deviation describes ordinary weights, and for those it is the scale. It is zero for an averaging filter and
nothing for a single weight, so the mean sets a floor: `max(deviation, |mean| / 2)`, which is continuous, and zero for
weights that are all zero alone. Sums run in double: the squares of 1e20 and of 1e-25 leave float32.
"""

import torch
from torch import Tensor

WEIGHT_CLIP_MIN = 1e-22
"""Of weights, and so what weights of zero have: they round to zero, and their clip value follows as they grow."""

FACTOR_MIN = 1e-6
"""Of a learned clip value of weights, in units of their scale."""


def weight_scale(weight: Tensor, correction: int = 1) -> Tensor:
    """The deviation (0-d), or half of the mean's magnitude where that is larger."""
    deviation, mean = _moments(weight, correction)
    return torch.maximum(deviation, mean.abs() / 2).to(weight.dtype)


def centre(weight: Tensor) -> Tensor:
    """What is taken off the weights (0-d) to centre them: their mean, as far as the deviation is their scale.

    An averaging filter is not centred, since nothing would be left of it.
    """
    deviation, mean = _moments(weight, 1)
    share = deviation / torch.maximum(deviation, mean.abs() / 2).clamp_min(torch.finfo(torch.double).tiny)
    return weight.mean() * share.to(weight.dtype)


def _moments(weight: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(weight.detach().double(), correction=min(correction, weight.numel() - 1))
    return deviation, mean
