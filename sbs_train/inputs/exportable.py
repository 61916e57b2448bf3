"""Whether a network can be exported to ONNX, checked before training, while the network can still be changed."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from sbs_train.contract.plan import InputSpec

REMEDY = "take what depends on an image's values (branches, NumPy) and scripted modules out of its forward"


def export_problem(model: nn.Module, input: InputSpec) -> str:
    """Why the float network `model` cannot be exported, and the remedy; empty if it can. `model` does not change."""
    example = torch.zeros(2, input.channels, input.height, input.width, device=next(model.parameters()).device)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    with quiet_exporter():
        try:
            # The exporter's first step, by far its fastest. The exporter's fallbacks turn values into constants.
            torch.export.export(copy.deepcopy(model).eval(), (example,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # noqa: BLE001  a network may raise anything
            reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
            return f"torch {torch.__version__} cannot export this model ({reason}); {REMEDY}"
    return ""


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
