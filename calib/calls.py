"""How somebody's `forward` calls a layer: `layer(x)`, or `layer(input=x)` by torch's name."""

from collections.abc import Mapping, Sequence
from typing import Any


def argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The one input of a layer, of what it is called with."""
    return args[0] if args else kwargs["input"]
