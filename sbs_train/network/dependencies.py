"""torch-pruning's dependency graph of somebody's network: it may fail on one, or never end."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from sbs_train.contract import limits


def dependencies_of(model: nn.Module, example: Tensor) -> tuple[Any, str]:
    """torch-pruning's graph of a network, or why there is none."""
    try:
        model.requires_grad_(True)  # the graph is read off autograd's
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False), ""
    except Exception as error:  # noqa: BLE001  whatever its operations raise
        return None, limits.NOT_TRACED.format(error=type(error).__name__)


def remove_channels(model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove output channels of layers and whatever belongs to them, in place.

    Args:
        example: an input of the model, of one sample.
        removed: indices of output channels, by the name of the layer; the layers are of different channel groups.

    Raises:
        Exception: whatever torch-pruning, or the model's own code, raises where it cannot follow an operation.
    """
    if not removed:
        return  # not every network can be traced
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Removal changes the modules that a graph was traced on, so that every copy of a network has its own.
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
        for name, channels in removed.items():
            layer = model.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, idxs=list(channels)).prune()


@contextmanager
def bounded(most: int = 100_000) -> Iterator[None]:
    """An error instead of all memory where torch-pruning maps channels in circles, as it does in windowed attention.

    It replaces a private class of torch-pruning 1.6 and is the only place that does so: docs/upstream.md.
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
