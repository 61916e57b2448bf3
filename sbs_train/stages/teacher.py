"""Distillation from the float network (`--teacher self`), for any task: its outputs are a second target.

Nothing is known of the outputs but that they are tensors: their distance is the mean square of the difference over the
mean square of the teacher's, by tensor, so that it has no unit.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.example import named_outputs
from sbs_train.inputs.state import load_state
from sbs_train.inputs.tensors import fitting_state, tensors_of
from sbs_train.network.network import Network
from sbs_train.quant.folding import plain_copy
from sbs_train.stages.context import Context
from sbs_train.stages.weights import maker_of, stage_files


class Taught:
    """A model that is called as it is, and remembers how far each answer was from its teacher's."""

    def __init__(self, model: nn.Module, teacher: nn.Module) -> None:
        self.model, self.teacher = model, teacher
        self.training = model.training
        self.distances: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            told = named_outputs(self.teacher(*args, **kwargs))
        answer = self.model(*args, **kwargs)
        self.distances.append(distance(named_outputs(answer), told))
        return answer


def distance(found: dict[str, Tensor], told: dict[str, Tensor]) -> Tensor:
    """Mean over the floating outputs that both networks have; SbsError if there are none of equal shape."""
    both = [
        (found[name].float(), target.float())
        for name, target in told.items()
        if target.is_floating_point() and name in found and found[name].shape == target.shape
    ]
    if not both:
        raise SbsError("--teacher self: training and evaluation have no floating output in common; leave --teacher out")
    parts = [(one - target).square().mean() / target.square().mean().clamp_min(1e-12) for one, target in both]
    return torch.stack(parts).mean()


def teacher_of(ctx: Context, network: Network) -> nn.Module | None:
    """The float network with the weights of pretraining, in eval mode; None without `--teacher`."""
    if ctx.config.teacher == "none":
        return None
    teacher, path = plain_copy(network.model), stage_files(ctx.run, "fp32")[0]
    state = teacher.state_dict()

    def load() -> None:
        content = rundir.read_whole(path, maker_of(ctx.run))
        load_state(teacher, fitting_state(str(path), tensors_of(path, content), state))

    ctx.ranks.on_first(load)
    ctx.ranks.share(teacher)
    return teacher.requires_grad_(False)
