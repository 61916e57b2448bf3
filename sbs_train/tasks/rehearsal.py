"""One training step on a copy of a network, before anything is trained.

In training mode a network may behave differently than in evaluation: return auxiliary outputs, ask for targets, refuse
a batch of one sample. The rehearsal finds this before hours of training and before a run directory is written.
"""

import copy

import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.tasks.feed import Feed, seeded

WRAP = "wrap the model, or change the task, so that one takes what the other gives"


def training_problem(model: nn.Module, feed: Feed, samples: int, *, train: bool = True) -> str:
    """Why the task's loss cannot train `model` on `samples` at a time, and the remedy; empty if it can.

    Without `train`, why the loss cannot be computed in evaluation. `model` does not change, including BatchNorm
    statistics; generators of random numbers do not change either.
    """
    with seeded(0):
        problem = _problem_with(model, feed, min(samples, 2), train)
        if problem and samples == 1 and not _problem_with(model, feed, 2, train):
            return f"the model cannot train on one sample at a time ({problem}); give a larger --batch-size"
    return problem


def _problem_with(model: nn.Module, feed: Feed, samples: int, train: bool) -> str:
    model = copy.deepcopy(model).train(train)
    name, mode = type(feed.task).__name__, "training" if train else "evaluation"
    try:
        batch = move_data_to_device(feed.example(samples), next(model.parameters()).device)
        loss: object = feed.task.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            found = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            return f"{name}.loss returns {found}; it must return a floating tensor without axes, a mean over samples"
        torch.autograd.backward(loss)
    except SbsError as error:
        return f"in {mode} {error}"
    except Exception as error:  # noqa: BLE001  a network may raise anything
        reason = (str(error).strip() or "no message").splitlines()[0]
        return f"the model fails in {mode} with the loss of {name}: {type(error).__name__}: {reason}; {WRAP}"
    if all(parameter.grad is None for parameter in model.parameters()):
        return f"{name}.loss does not depend on the model's parameters; it must call the model that it is given"
    return ""
