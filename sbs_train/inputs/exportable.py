"""Whether a network can be exported to ONNX, checked before training, while the network can still be changed."""

import contextlib
import copy
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sbs_train.contract.errors import SbsError
from sbs_train.example import BATCH, Example, named_outputs

REMEDY = "take what depends on an image's values (branches, NumPy) and scripted modules out of its forward"


def export_problem(model: nn.Module, example: Example) -> str:
    """Why the float network `model` cannot be exported, and the remedy; empty if it can. `model` does not change."""
    traced = copy.deepcopy(model).eval()
    with quiet_exporter(), flat_outputs(traced):
        try:
            # The exporter's first step, by far its fastest. The exporter's fallbacks turn values into constants.
            torch.export.export(
                traced,
                example.args,
                example.kwargs,
                dynamic_shapes=dynamic_shapes(model, example),
                strict=False,
            )
        except Exception as error:  # noqa: BLE001  a network may raise anything
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            return f"torch {torch.__version__} cannot export this model ({reason}); {REMEDY}"
    return ""


def dynamic_shapes(
    model: nn.Module, example: Example, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> dict[str, Any]:
    """The axes of a network's inputs whose sizes may vary, as `torch.export` takes them, by parameter of `forward`.

    Args:
        dynamic: by name of an input, the names of such axes; axis 0 of all other inputs is the batch where its size is
            that of the samples.

    Raises:
        SbsError: `dynamic` names an input or an axis that the network does not have.
    """
    names, samples = example.named(model), example.samples
    dynamic = dynamic or {}
    for name, axes in dynamic.items():
        if not _is_named(axes):
            raise SbsError(
                f'dynamic: {name} has {axes!r}; give axes with names of their sizes, such as {{2: "height"}}'
            )
        if name not in names or not all(0 <= axis < names[name].dim() for axis in axes):
            raise SbsError(f"dynamic: no input {name} with axes {list(axes)}; the inputs are {', '.join(names)}")
    sizes = {axis: torch.export.Dim(axis, min=1) for axes in (*dynamic.values(), {0: BATCH}) for axis in axes.values()}
    name_of = {id(tensor): name for name, tensor in names.items()}

    def axes_of(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        usual = {0: BATCH} if leaf.dim() and len(leaf) == samples else {}
        return {axis: sizes[name] for axis, name in dynamic.get(name_of[id(leaf)], usual).items()}

    return {name: tree_map(axes_of, value) for name, value in example.arguments(model).items()}


def _is_named(axes: Any) -> bool:
    return isinstance(axes, Mapping) and all(
        isinstance(axis, int) and isinstance(name, str) and name.isidentifier() for axis, name in axes.items()
    )


@contextlib.contextmanager
def flat_outputs(model: nn.Module) -> Iterator[None]:
    """Inside a `with` block the model returns its tensors alone: the exporter knows no dataclasses, numbers or None."""
    own = model.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return tuple(named_outputs(own(*args, **kwargs)).values())

    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's progress and deprecation warnings, which mean nothing to a user."""
    previous = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
