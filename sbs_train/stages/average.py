"""A moving average of the weights, which an evaluation may like better than where the last steps ended."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """Exponential moving average of parameters (Polyak and Juditsky, 1992), one update a step."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move a step of 1 - decay towards the parameters."""
        torch._foreach_lerp_(self.values, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def take(self) -> None:
        """Put the average in the place of the parameters."""
        torch._foreach_copy_(self.parameters, self.values)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for value, saved in zip(self.values, state["values"], strict=True):
            value.copy_(saved)
