"""Which operation joins the outputs of several layers: a gate multiplies, a residual stream adds."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

GATES = ("MulBackward", "DivBackward")


def joined_by(nodes: Iterable[Any], writers: Mapping[nn.Module, str], others: Iterable[nn.Module]) -> str:
    """The operation that joins outputs of different `writers` into one tensor; empty if only gates do.

    A gate (squeeze-and-excitation) multiplies two tensors of one stream: nothing comes in from elsewhere. A sum
    whose operands come from the same layer joins nothing either.

    Args:
        nodes: nodes of torch-pruning's graph for one group of channels.
        others: layers that read the channels and write none of them.
    """
    ends, known = set(others) - set(writers), dict[int, frozenset[str]]()

    def sources(node: Any) -> frozenset[str]:
        if id(node) not in known:
            known[id(node)] = frozenset()  # ends the recursion at a node in a circle
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
