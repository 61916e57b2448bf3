"""Checks of tensors from files and from a user's function: name, shape, type, finite values."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sbs_train.contract.bounds import TENSORS_HEADER_BYTES
from sbs_train.contract.errors import SbsError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that may be converted into each other."""
_OTHER_MODEL = "these are weights of another model: check --model and --width"


def tensors_of(path: Path, content: bytes) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name.

    Args:
        path: path of the file, for messages.
        content: bytes of the file.

    Raises:
        SbsError: the file is damaged.
    """
    header = int.from_bytes(content[:8], "little")
    if header > TENSORS_HEADER_BYTES:
        raise SbsError(f"{path} is no safetensors file (a header of {header} bytes); make it again")
    try:
        return load(content)
    except (SafetensorError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
        raise SbsError(f"{path} is not a whole safetensors file ({error}); make it again") from error


def fitting_state(where: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state`, converted to the types of `expected`, the model's own state.

    Args:
        where: source of the tensors, for messages.

    Raises:
        SbsError: names the first tensor that is missing, unknown, of another shape or type, or not finite.
    """
    for name in sorted(expected.keys() ^ state.keys()):
        told = "lacks" if name in expected else "has the unknown"
        raise SbsError(f"{where} {told} {name}: {_OTHER_MODEL}")
    return {name: _fitting(f"{where}: {name}", value, expected[name]) for name, value in state.items()}


def _fitting(name: str, value: Tensor, expected: Tensor) -> Tensor:
    if value.shape != expected.shape:
        shapes = f"has shape {list(value.shape)}, the model's {list(expected.shape)}"
        raise SbsError(f"{name} {shapes}; {_OTHER_MODEL}")
    if value.dtype != expected.dtype and not (value.dtype in _FLOATS and expected.dtype in _FLOATS):
        raise SbsError(f"{name} is of {value.dtype}, the model's of {expected.dtype}; save it in that type")
    fits = value.to(expected.dtype)
    problem = wrong_numbers(name, fits, expected)
    if problem:
        raise SbsError(f"{name} {problem}; give weights that were saved before training failed, or train them again")
    return fits


def wrong_numbers(name: str, value: Tensor, expected: Tensor | None = None) -> str | None:
    """What is wrong with a tensor's values, or None; values may be infinite where those of `expected` are.

    Args:
        name: name of the tensor, which tells variances of BatchNorm.
    """
    if not value.is_floating_point():
        return None
    wrong = ~value.isfinite()
    if expected is not None:
        wrong &= expected.isfinite().to(wrong.device)  # such as a mask of -inf
    if wrong.any():
        return f"holds {int(wrong.sum())} values that are NaN or infinite"
    if name.endswith("running_var") and (value < 0).any():
        return "holds negative variances"
    return None


def check_model(model: nn.Module, name: str) -> None:
    """Refuse a user's model that cannot be copied, or whose weights are not allocated, not float32 or not finite; a
    buffer may hold infinity, as masks do.

    Raises:
        SbsError: names the tensor, or why the model cannot be copied.
    """
    for key, value in model.state_dict(keep_vars=True).items():
        if is_lazy(value) or value.is_meta:
            raise SbsError(f"--model {name}: {key} has no values yet; run the model once in the factory")
        if isinstance(value, nn.Parameter) and value.is_floating_point() and value.dtype != torch.float32:
            kind = str(value.dtype).removeprefix("torch.")
            raise SbsError(f"--model {name}: {key} is in {kind}; training is in float32: build it with model.float()")
        mask = not isinstance(value, nn.Parameter) and not key.endswith(("running_mean", "running_var"))
        problem = None if mask and not value.isnan().any() else wrong_numbers(key, value.detach())
        if problem:
            raise SbsError(f"--model {name}: {key} {problem}; mend the weights that the factory loads")
    try:
        copy.deepcopy(model)
    except Exception as error:  # foreign attributes may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
        raise SbsError(
            f"--model {name}: the model cannot be copied ({reason}), which every trial of it needs; use "
            f"torch.nn.utils.parametrizations in place of the old weight_norm, and keep locks, generators and open "
            f"files outside of the model"
        ) from error
