"""What a checkpoint may hold, judged by what its stage holds now: a damaged one is refused before anything is used."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sbs_train.inputs.tensors import fitting_state

PROBLEMS = (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError)
"""What loading the wrong values raises, SbsError among them."""


def check_stored(found: Any, parts: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another form.

    Args:
        found: what was read.
        parts: what it is for, by name.

    Raises:
        ValueError: names the first wrong part.
    """
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        raise ValueError("it holds no state")
    for name in ("epoch", "step"):
        if type(found.get(name)) is not int or found[name] < 0:
            raise ValueError(f"{name} is no count")
    _check(found.get("seconds"), 0.0, "seconds")
    _check(found.get("totals"), {}, "totals")
    if any(not isinstance(value, Tensor) or value.dim() for value in found["totals"].values()):
        raise ValueError("totals are not numbers")
    for name, part in parts.items():
        state = found["state"].get(name)
        if not isinstance(state, dict):
            raise ValueError(f"{name} is missing")
        if isinstance(part, nn.Module):
            _check(state, {}, name)
            fitting_state(name, state, part.state_dict())
        elif isinstance(part, Optimizer):
            _check_optimizer(state, part, name)
        else:
            _check(state, part.state_dict(), name)


def _check_optimizer(state: dict[str, Any], optimizer: Optimizer, name: str) -> None:
    own = optimizer.state_dict()
    _check(state.get("param_groups"), own["param_groups"], f"{name}.param_groups")
    for group, expected in zip(state["param_groups"], own["param_groups"], strict=True):
        if group["params"] != expected["params"]:
            raise ValueError(f"{name} is for other parameters")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _check(state.get("state"), {}, f"{name}.state")
    for index, moments in state["state"].items():
        for key, value in moments.items():
            shape = parameters[index].shape
            if value is not None and (not isinstance(value, Tensor) or value.shape not in ((), shape)):
                raise ValueError(f"{name}: {key} of parameter {index} has another shape")


def _check(found: Any, like: Any, where: str) -> None:
    """Refuse values of another form than `like`; what is empty or None there may be any plain values here."""
    if like is None:
        _check_plain(found, where)
    elif isinstance(like, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{where} is no tensor of shape {list(like.shape)} and type {like.dtype}")
        _check_plain(found, where)
    elif isinstance(like, dict):
        if not isinstance(found, dict) or (like and found.keys() != like.keys()):
            raise ValueError(f"{where} has other entries")
        for key, value in found.items():
            _check(value, like.get(key), f"{where}.{key}")
    elif isinstance(like, list | tuple):
        if not isinstance(found, list | tuple):
            raise ValueError(f"{where} is no list")
        for index, value in enumerate(found):
            _check(value, like[min(index, len(like) - 1)] if like else None, f"{where}.{index}")
    elif isinstance(like, bool | str):
        if type(found) is not type(like):
            raise ValueError(f"{where} is no {type(like).__name__}")
    elif isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{where} is no number")
    elif not math.isfinite(found) and math.isfinite(like):
        raise ValueError(f"{where} is not finite")


def _check_plain(found: Any, where: str) -> None:
    if isinstance(found, Tensor):
        if found.numel() * found.element_size() > found.untyped_storage().nbytes():
            raise ValueError(f"{where} claims more values than it has")
        if found.is_floating_point() and not found.isfinite().all():
            raise ValueError(f"{where} holds NaN or infinity")
    elif isinstance(found, dict):
        for key, value in found.items():
            _check_plain(value, f"{where}.{key}")
    elif isinstance(found, list | tuple):
        for value in found:
            _check_plain(value, where)
    elif isinstance(found, float) and not math.isfinite(found):
        raise ValueError(f"{where} is not finite")
