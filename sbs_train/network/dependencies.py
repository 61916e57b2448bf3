"""torch-pruning's dependency graph of a network: building it may fail, or never end."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch_pruning as tp
from torch import nn

from sbs_train.contract import limits
from sbs_train.example import Example, floats_of


def dependencies_of(model: nn.Module, example: Example) -> tuple[Any, str]:
    """(graph, reason): torch-pruning's graph of a network, or None and the reason why it cannot be built."""
    try:
        model.requires_grad_(True)  # torch-pruning follows the autograd graph
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _graph(model, example), ""
    except Exception as error:  # noqa: BLE001  its operations may raise anything
        return None, limits.NOT_TRACED.format(error=type(error).__name__)


def _graph(model: nn.Module, example: Example) -> Any:
    return tp.DependencyGraph().build_dependency(
        model,
        example_inputs=example.first(1),
        forward_fn=lambda model, one: [y for y in floats_of(one.run(model)) if y.requires_grad],
        verbose=False,
    )


def remove_channels(model: nn.Module, example: Example, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove output channels of layers and everything that depends on them, in place.

    Args:
        removed: indices of output channels, by the name of the layer; the layers are of different channel groups.

    Raises:
        Exception: torch-pruning, or the model's own code, cannot follow an operation.
    """
    if not removed:
        return  # not every network can be traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Removal changes the traced modules, so every copy of a network needs its own graph.
        graph = _graph(model, example)
        for name, channels in removed.items():
            layer = model.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, idxs=list(channels)).prune()


@contextmanager
def bounded(most: int = 100_000) -> Iterator[None]:
    """Stop torch-pruning with an error where it maps channels in circles (windowed attention) and would fill memory.

    Replaces a private class of torch-pruning 1.6, here only: docs/upstream.md.
    """
    index = tp._helpers._HybridIndex
    made = itertools.count()

    class Counted(index):  # type: ignore[misc, valid-type]
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            if next(made) > most:
                raise OverflowError("channels are mapped without end")
            return index.__new__(cls, *args, **kwargs)

    tp._helpers._HybridIndex = Counted
    try:
        yield
    finally:
        tp._helpers._HybridIndex = index
