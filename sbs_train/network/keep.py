"""Layers that the user excludes from the search, by patterns of their names."""

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import FLOAT_BITS


def kept_layers(model: nn.Module, keep: Mapping[str, int | Literal["float"]]) -> dict[str, int]:
    """Bits of the layers that `keep` names, 32 for float; of several patterns for one layer the last counts.

    Raises:
        SbsError: a pattern matches no convolution and no linear layer, or a value is neither "float" nor a number.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)]
    found: dict[str, int] = {}
    for pattern, bits in keep.items():
        if isinstance(bits, bool) or not (bits == "float" or isinstance(bits, int)):
            raise SbsError(f'keep: {pattern} is {bits!r}; give "float" or a number of bits such as 8')
        matching = [name for name in names if fnmatchcase(name, pattern)]
        if not matching:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise SbsError(f"keep: no layer matches {pattern}; near are {', '.join(near)}")
        found |= dict.fromkeys(matching, FLOAT_BITS if bits == "float" else bits)
    return found
