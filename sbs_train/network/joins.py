"""How the outputs of several layers become one tensor: a gate multiplies a tensor, a residual stream is added up."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

GATES = ("MulBackward", "DivBackward")


def joined_by(nodes: Iterable[Any], writers: Mapping[nn.Module, str], others: Iterable[nn.Module]) -> str:
    """The operation that makes one tensor of what different `writers` wrote, other than as a gate; empty if none does.

    Squeeze-and-excitation has two layers write the same channels, and the product of both is no more than one stream:
    nothing comes in from elsewhere. A sum of two operands that one layer has both written to is none either.

    Args:
        nodes: of torch-pruning's graph, those of one group of channels.
        others: layers that read the channels and write none of them.
    """
    ends, known = set(others) - set(writers), dict[int, frozenset[str]]()

    def sources(node: Any) -> frozenset[str]:
        if id(node) not in known:
            known[id(node)] = frozenset()  # of a node that leads back to itself
            if node.module in writers:
                known[id(node)] = frozenset([writers[node.module]])
            elif node.module not in ends:
                known[id(node)] = frozenset[str]().union(*map(sources, node.inputs))
        return known[id(node)]

    for node in nodes:
        operation = type(node.grad_fn).__name__
        if len(node.inputs) < 2 or operation.startswith(GATES):
            continue
        written = [one for one in map(sources, node.inputs) if one]
        if any(not a & b for i, a in enumerate(written) for b in written[:i]):
            return operation.partition("Backward")[0].lower()
    return ""
