"""The argument of a layer's call: `layer(x)`, or `layer(input=x)` by torch's name."""

from collections.abc import Mapping, Sequence
from typing import Any


def argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The input of a layer, from the arguments of its call."""
    return args[0] if args else kwargs["input"]
