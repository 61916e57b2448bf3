"""The optimizer of a stage, and the shape of its learning rate over the stage."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from sbs_train.contract.config import FitConfig
from sbs_train.network.network import Network

Shape = Callable[[float], float]
"""A function from the finished fraction of a stage (0..1) to a fraction of the peak learning rate."""
COLD = 0.01
"""The fraction of the peak rate that a warm-up starts from."""


def optimizer_of(network: Network, config: FitConfig, lr_clip: float | None) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW, on all parameters: matrices decay, biases, normalisation and clip values do
    not.

    Clip values have the learning rate `lr_clip`; None leaves clip values out.
    """
    clips = network.clip_values()
    ids = {id(clip) for clip in clips}
    parameters = [parameter for parameter in network.model.parameters() if id(parameter) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if lr_clip is not None:
        groups.append({"params": clips, "lr": lr_clip, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def schedule(config: FitConfig) -> Shape:
    """The shape by the settings: divided by 10 at each milestone, or along a cosine without any, after the warm-up."""
    if config.milestones:
        return warmed_up(config, lambda fraction: _stairs(config, fraction))
    start = config.warmup / config.epochs
    return warmed_up(config, lambda fraction: cosine((fraction - start) / (1 - start)))


def warmed_up(config: FitConfig, shape: Shape) -> Shape:
    """`shape`, with a line from 1 % of the peak in front of it, as long as the warm-up of the settings."""
    end = config.warmup / config.epochs
    return lambda fraction: COLD + (1 - COLD) * fraction / end if fraction < end else shape(fraction)


def constant(fraction: float) -> float:
    """The shape of a constant learning rate: 1."""
    return 1.0


def cosine(fraction: float) -> float:
    """The shape that falls from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def _stairs(config: FitConfig, fraction: float) -> float:
    return float(0.1 ** sum(fraction * config.epochs >= epoch - 1e-9 for epoch in config.milestones))
