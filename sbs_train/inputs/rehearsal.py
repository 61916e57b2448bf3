"""One training step on a copy of a network, before anything is trained.

In training mode a network may behave differently than in evaluation: return auxiliary outputs, ask for targets, refuse
a batch of one image. The rehearsal finds this before data is read and a run directory written.
"""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbs_train.contract.errors import SbsError
from sbs_train.example import Example, run_quietly

WRAP = "wrap the model so that it takes images alone and returns logits (N, classes) in training as well"


def training_problem(model: nn.Module, example: Example, images: int, classes: int | None = None) -> str:
    """Why `model` cannot be trained on `images` at a time, and the remedy; empty if it can.

    Args:
        model: does not change, including BatchNorm statistics; generators of random numbers do not change either.
        images: number of images of one forward pass.
        classes: number of classes of the labels, if known.
    """
    with _generators_kept():
        problem = _problem_with(model, example, min(images, 2), classes)
        if problem and images == 1 and not _problem_with(model, example, 2, classes):
            return f"the model cannot train on one image at a time ({problem}); give a larger --batch-size"
    return f"{problem}; {WRAP}" if problem else ""


@torch.no_grad()
def require_logits(model: nn.Module, example: Example) -> None:
    """SbsError unless the model returns logits (N, classes), as a classifier does."""
    output = run_quietly(model, example)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise SbsError(f"the model returns {_described(output)}; wrap it so that it returns logits (N, classes)")


def _problem_with(model: nn.Module, example: Example, images: int, classes: int | None) -> str:
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    x = example.first(images).random(0)
    try:
        with torch.no_grad():
            evaluated = x.run(model.eval())
        with torch.enable_grad():
            output = x.random(0).run(model.train())
            if not isinstance(output, Tensor):
                return f"in training the model returns {_described(output)}"
            if output.shape != evaluated.shape or output.dim() != 2 or len(output) != images:
                shapes = f"{list(output.shape)} in training, {list(evaluated.shape)} in evaluation"
                return f"for {images} image{'s'[: images - 1]} the model returns {shapes}"
            if classes is not None and output.shape[1] < classes:
                return f"the model returns {output.shape[1]} logits, the data has {classes} classes"
            loss = F.cross_entropy(output, torch.zeros(images, dtype=torch.int64, device=device))
            torch.autograd.backward(loss)
    except Exception as error:  # noqa: BLE001  a network may raise anything
        reason = (str(error).strip() or "no message").splitlines()[0]
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in x.tensors)
        return f"the model fails in training on inputs of {shapes}: {type(error).__name__}: {reason}"
    return ""


def _described(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(str, output))}"
    if isinstance(output, list | tuple):
        parts = [f"Tensor {list(one.shape)}" if isinstance(one, Tensor) else type(one).__name__ for one in output]
        return f"{kind} ({', '.join(parts)})"
    return kind


@contextmanager
def _generators_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # generators that networks may use
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
