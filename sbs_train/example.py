"""Example inputs of a network, and the names of what goes in and comes out.

A network may take several tensors, by position or by keyword, nested in lists, tuples and dicts, and may return the
same. The names follow one rule: an input is called like its parameter of `forward`, one output tensor "output", parts
of tuples and lists by number, parts of mappings by key, joined by dots: "x", "x.left", "output.0".
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sbs_train.contract.errors import SbsError
from sbs_train.contract.schema import TensorSpec

OUTPUT = "output"
BATCH = "batch"
DTYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")


@dataclass(frozen=True)
class Example:
    """Arguments of one call of a network: `model(*args, **kwargs)`, for one sample or more."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, inputs: Any) -> "Example":
        """A tensor is one argument, a tuple holds several, a mapping keyword arguments; a list is one argument.

        Raises:
            SbsError: `inputs` hold no tensor with an axis.
        """
        if isinstance(inputs, Mapping):
            example = cls((), dict(inputs))
        else:
            example = cls(inputs if type(inputs) is tuple else (inputs,), {})
        if not any(tensor.dim() for tensor in example.tensors):
            raise SbsError(
                "the example inputs hold no tensor with an axis; give a tensor, or a tuple or dict of tensors"
            )
        return example

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def samples(self) -> int:
        """Size of axis 0 of the first tensor that has axes; tensors with other sizes there have no axis of samples."""
        return next(len(tensor) for tensor in self.tensors if tensor.dim())

    def run(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Example":
        """An example with every tensor changed."""
        args, kwargs = tree_map(
            lambda leaf: change(leaf) if isinstance(leaf, Tensor) else leaf, (self.args, self.kwargs)
        )
        return Example(args, kwargs)

    def random(self, seed: int) -> "Example":
        """Floating tensors become standard normal; integers and booleans, which may be indices, keep their values."""
        generator = torch.Generator().manual_seed(seed)

        def drawn(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.clone()
            return torch.randn(tensor.shape, generator=generator).to(tensor)

        return self.map(drawn)

    def first(self, count: int) -> "Example":
        """The first `count` samples."""
        samples = self.samples
        return self.map(lambda tensor: tensor[:count] if tensor.dim() and len(tensor) == samples else tensor)

    def to(self, target: torch.device | torch.dtype) -> "Example":
        """On another device, or with floating tensors of another type."""
        if isinstance(target, torch.dtype):
            return self.map(lambda tensor: tensor.to(target) if tensor.is_floating_point() else tensor)
        return self.map(lambda tensor: tensor.to(target))

    def ordered(self, model: nn.Module) -> "Example":
        """With keyword arguments in the order of `forward`'s parameters, as torch's exporter writes them in a graph."""
        order = list(self.arguments(model))
        known = sorted((name for name in self.kwargs if name in order), key=order.index)
        return Example(self.args, {name: self.kwargs[name] for name in dict.fromkeys([*known, *self.kwargs])})

    def arguments(self, model: nn.Module) -> dict[str, Any]:
        """The arguments by the name of their parameter of `forward`; `*args` and `**kwargs` hold several.

        Raises:
            SbsError: `forward` takes other arguments.
        """
        try:
            return dict(inspect.signature(model.forward).bind(*self.args, **self.kwargs).arguments)
        except TypeError as error:
            raise SbsError(f"forward of {type(model).__name__} does not take the example inputs: {error}") from error

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Every tensor by its name; no name is one of the model's parameters or buffers."""
        parameters = inspect.signature(model.forward).parameters
        named = [
            one
            for name, value in self.arguments(model).items()
            for one in _leaves(value, "" if parameters[name].kind is inspect.Parameter.VAR_KEYWORD else name)
        ]
        return _unique(named, _own_names(model))


def named_outputs(output: Any, taken: Collection[str] = ()) -> dict[str, Tensor]:
    """Every tensor of a network's output by its name; what is no tensor is left out.

    Args:
        taken: names that no output may have.
    """
    named = list(_leaves(output, "" if isinstance(output, Mapping) or dataclasses.is_dataclass(output) else OUTPUT))
    return _unique(named, taken)


def floats_of(output: Any) -> list[Tensor]:
    """The floating tensors of a network's output."""
    return [tensor for tensor in named_outputs(output).values() if tensor.is_floating_point()]


@torch.no_grad()
def specs_of(model: nn.Module, example: Example) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and the outputs of a network; runs it in eval mode, and changes nothing.

    Axis 0 of an input varies with the batch where its size is that of the samples. An axis of an output varies where
    it does between two numbers of samples.

    Raises:
        SbsError: the model fails, returns no tensor, or has a type that no engine takes.
    """
    inputs = example.named(model)
    taken = {*_own_names(model), *inputs}
    found = named_outputs(run_quietly(model, example), taken)
    if not found:
        raise SbsError(f"{type(model).__name__} returns no tensor; let its forward return what shall be exported")
    samples = example.samples
    try:
        fewer = named_outputs(run_quietly(model, example.first(samples - 1)), taken) if samples > 1 else {}
    except Exception:  # noqa: BLE001  some networks fix their number of samples
        fewer = {}
    return (
        [_spec(name, tensor, [_batch(tensor, samples)]) for name, tensor in inputs.items()],
        [_spec(name, tensor, _varying(tensor, fewer.get(name), samples)) for name, tensor in found.items()],
    )


def run_quietly(model: nn.Module, example: Example) -> Any:
    """The model's output in eval mode; every module keeps its mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return example.run(model)
    finally:
        for module, training in modes.items():
            module.training = training


def _batch(tensor: Tensor, samples: int) -> str | None:
    return BATCH if tensor.dim() and len(tensor) == samples else None


def _varying(tensor: Tensor, fewer: Tensor | None, samples: int) -> list[str | None]:
    """By axis, the name of its size where it varies with the number of samples, else None."""
    if fewer is None or fewer.dim() != tensor.dim():
        return [_batch(tensor, samples)]
    names: list[str | None] = []
    for axis, (size, less) in enumerate(zip(tensor.shape, fewer.shape, strict=True)):
        factor, rest = divmod(size, samples)
        if size == less:
            names.append(None)
        elif rest or less != factor * (samples - 1):
            names.append(f"axis{axis}")
        else:
            names.append(BATCH if factor == 1 else f"{factor}*{BATCH}")
    return names


def _spec(name: str, tensor: Tensor, axes: list[str | None]) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise SbsError(
            f"{name} is {dtype}, which no engine takes or returns; convert it in forward to float32 or int64"
        )
    axes = [*axes, *[None] * tensor.dim()][: tensor.dim()]
    shape = [size if axis is None else axis for size, axis in zip(tensor.shape, axes, strict=True)]
    return TensorSpec.model_validate({"name": name, "dtype": dtype, "shape": shape})


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list | tuple):
        parts = list(enumerate(value))
    elif dataclasses.is_dataclass(value):
        parts = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        parts = []
    for key, part in parts:
        yield from _leaves(part, f"{name}.{key}" if name else str(key))


def _unique(named: list[tuple[str, Tensor]], taken: Collection[str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in named:
        plain = wanted = re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"
        count = 1
        while wanted in found or wanted in taken:
            count += 1
            wanted = f"{plain}_{count}"
        found[wanted] = tensor
    return found


def _own_names(model: nn.Module) -> set[str]:
    own = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name for name, _ in own}
