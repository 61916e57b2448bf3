"""A model's state from disk or from memory, without what a plain dictionary has lost."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """`load_state_dict` for tensors of this very version of the model.

    A plain dictionary says nothing of versions, and some networks (torchvision's MNASNet) refuse one or convert it.
    """
    whole = OrderedDict(state)
    whole._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(whole, strict=strict)
