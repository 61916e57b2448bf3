"""An engine in the place of a PyTorch model: tensors in, what the network would return out."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sbs_deploy.backends.base import Engine, outputs_in_parts
from sbs_deploy.graph.arrays import samples_of
from sbs_train.contract.errors import SbsError
from sbs_train.example import OUTPUT, Example


class EngineModel:
    """Called as the network is."""

    def __init__(self, engine: Engine, batch: int | None = None, *, tensor: bool = False) -> None:
        """
        Args:
            batch: most samples that the engine takes at a time; None takes any number.
            tensor: whether the only output is the network's whole answer, whatever its name (plans of version 1).
        """
        self.engine, self.batch, self.tensor = engine, batch, tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer; tensors lie on the CPU. SbsError if the engine takes other inputs."""
        found = Example(args, kwargs).tensors
        names = [spec.name for spec in self.engine.inputs]
        if kwargs.keys() <= set(names) and len(found) == len(names):  # keywords may come in any order
            positional = iter(Example(args, {}).tensors)
            found = [kwargs[name] if name in kwargs else next(positional) for name in names]
        if len(found) != len(names):
            raise SbsError(f"{self.engine.name} takes {', '.join(names)}, and was given {len(found)} tensors")
        inputs = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, found, strict=True)}
        batch = self.batch or max(1, samples_of(inputs, self.engine.inputs))
        outputs = outputs_in_parts(self.engine, inputs, batch)
        tensors = {name: torch.from_numpy(array) for name, array in outputs.items()}
        return next(iter(tensors.values())) if self.tensor and len(tensors) == 1 else answer_of(tensors)


def answer_of(outputs: Mapping[str, Tensor]) -> Any:
    """What a network returned whose outputs `example.named_outputs` gave these names; lists and tuples are tuples.

    The names do not tell a dict {"output": …} from a tensor, or a dict with the keys "0", "1", … from a tuple.

    >>> answer_of({"output.0": 1, "output.1.left": 2})
    (1, {'left': 2})
    """
    names = [name.split(".") for name in outputs]
    if all(parts[0] == OUTPUT for parts in names):
        names = [parts[1:] for parts in names]
    return _nested(list(zip(names, outputs.values(), strict=True)))


def _nested(leaves: list[tuple[list[str], Tensor]]) -> Any:
    if any(not parts for parts, _ in leaves):
        return leaves[0][1]
    groups: dict[str, list[tuple[list[str], Tensor]]] = {}
    for parts, leaf in leaves:
        groups.setdefault(parts[0], []).append((parts[1:], leaf))
    found = {key: _nested(group) for key, group in groups.items()}
    return tuple(found.values()) if list(found) == [str(index) for index in range(len(found))] else found
