"""Load a model's state from a plain dictionary, which has no version numbers."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """`load_state_dict` for tensors of the model's current version.

    Some networks (torchvision's MNASNet) refuse or convert a state without version numbers.
    """
    whole = OrderedDict(state)
    whole._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(whole, strict=strict)
