"""Whether the arguments of `Search` are of the kinds that it takes, before anything is done to the model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sbs_train.contract.config import Mode, SearchConfig
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import Family
from sbs_train.example import Example
from sbs_train.network.carried import refuse_searched

FLAG = re.compile(r"--(search\.)?([a-z][a-z-]*)")
"""A setting by its name on the command line."""
STEPS_MIN = 8
"""Fewest steps of a search: the estimates are variances between steps."""
CALIBRATION_MAX = 1000
"""Most inputs of a calibration: more do not end, or are a whole data set."""


def check_arguments(
    *, model: object, target: object, steps: object, calibration: object, mode: object, keep: object, grid: object
) -> None:
    """SbsError for an argument of another kind, or a model that cannot be searched."""
    for name, value, kind, example in (
        ("model", model, nn.Module, "a torch.nn.Module"),
        ("target", target, str, 'text such as "30x"'),
        ("calibration", calibration, Iterable, "batches of inputs, such as a list of them"),
        ("keep", {} if keep is None else keep, Mapping, 'a dict such as {"head.*": "float"}'),
    ):
        if not isinstance(value, kind):
            raise SbsError(f"{name} is of type {type(value).__name__}; give {example}")
    for name, value, choices in (("mode", mode, get_args(Mode)), ("grid", grid, get_args(Family))):
        if value not in choices:
            raise SbsError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise SbsError(f"steps is {steps!r}; give the number of calls of step() that will come, such as 1000")
    if steps < STEPS_MIN:
        raise SbsError(f"steps={steps} are too few: a search needs {STEPS_MIN}, and hundreds to be any good")
    assert isinstance(model, nn.Module)
    _check_model(model)


def check_options(options: object) -> None:
    """SbsError for options that are none, or that only the command line has."""
    if not isinstance(options, SearchConfig):
        raise SbsError(f"options is of type {type(options).__name__}; give sbs_train.SearchConfig(...)")
    options.check()
    if options.metric != "loss" or options.lambda_ is not None:
        raise SbsError("options.metric must be loss, without a lambda: learned thresholds are for sbs-train")


def check_scale(grad_scale: object) -> None:
    """SbsError for what no loss was multiplied by."""
    if not isinstance(grad_scale, int | float | torch.Tensor) or not grad_scale > 0:
        raise SbsError(f"grad_scale is {grad_scale}; give what the loss was multiplied by, such as 1.0")


def examples_of(calibration: Iterable[Any]) -> Iterator[Example]:
    """The inputs of a calibration; SbsError if there are none, no end of them, or if one holds no tensor."""
    count = 0
    for count, inputs in enumerate(calibration, 1):
        if count > CALIBRATION_MAX:
            raise SbsError(
                f"calibration gives more than {CALIBRATION_MAX} inputs; a few are enough, such as "
                f"itertools.islice(batches, 8)"
            )
        try:
            example = Example.of(inputs)
        except SbsError as error:
            raise SbsError(f"calibration: {error}") from error
        yield example
    if not count:
        raise SbsError("calibration gives no inputs; a generator gives its own only once")


def _check_model(model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise SbsError("Search needs the model itself; wrap it (DistributedDataParallel, torch.compile) afterwards")
    refuse_searched(model)
    if next(model.parameters(), None) is None:
        raise SbsError("the model has no parameters; there is nothing to compress")
    if half := next((n for n, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)), None):
        raise SbsError(f"{half} is in half precision; search in float32, with torch.autocast around the loss")


@contextmanager
def own_words() -> Iterator[None]:
    """Within the block, errors name the arguments of `Search` instead of those of the command line."""
    try:
        yield
    except SbsError as error:
        parts = str(error).split("`")  # between backticks stand commands
        parts[::2] = [FLAG.sub(lambda found: _argument(found[1] or "", found[2]), part) for part in parts[::2]]
        raise SbsError("`".join(parts)) from error


def _argument(search: str, name: str) -> str:
    return ("options." if search else "") + name.replace("-", "_")
