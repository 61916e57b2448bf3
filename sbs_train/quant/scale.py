"""The scale of weights, in units of which their clip values are learned.

For ordinary weights the scale is the standard deviation, which is zero for an averaging filter and undefined for a
single weight. So the mean sets a floor: `max(deviation, |mean| / 2)` is continuous, and zero only if all weights are
zero. Sums run in double: the squares of 1e20 and of 1e-25 leave float32.
"""

import torch
from torch import Tensor

WEIGHT_CLIP_MIN = 1e-22
"""Smallest clip value of weights, which zero weights have: they round to zero, and it grows with them."""

FACTOR_MIN = 1e-6
"""Smallest learned clip value of weights, in units of their scale."""


def weight_scale(weight: Tensor, correction: int = 1) -> Tensor:
    """The deviation (0-d), or half of the mean's magnitude where that is larger."""
    deviation, mean = _moments(weight, correction)
    return torch.maximum(deviation, mean.abs() / 2).to(weight.dtype)


def centre(weight: Tensor) -> Tensor:
    """The value (0-d) to subtract from weights to centre them: their mean while the deviation is their scale.

    An averaging filter is not centred, since centring would leave zeros.
    """
    deviation, mean = _moments(weight, 1)
    share = deviation / torch.maximum(deviation, mean.abs() / 2).clamp_min(torch.finfo(torch.double).tiny)
    return weight.mean() * share.to(weight.dtype)


def _moments(weight: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(weight.detach().double(), correction=min(correction, weight.numel() - 1))
    return deviation, mean
