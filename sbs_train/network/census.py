"""Which convolutions and linear layers a network runs, their MACs, and which layers have to stay in float."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from calib.calls import argument
from sbs_train.contract import limits
from sbs_train.contract.errors import SbsError
from sbs_train.example import Example
from sbs_train.network.constant import constant_layers
from sbs_train.network.subclasses import computes_its_parent
from sbs_train.quant.layers import KINDS
from sbs_train.quant.swapping import has_parents_forward


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One layer of a forward pass: a module, or several that share one weight."""

    macs: int
    """MACs for one sample."""
    float_reason: str
    """Why the layer stays in float; empty where it can be quantized."""
    same_input: str
    """The first layer that reads the same input tensors in the same order; the layer's own name if it is the first."""
    calls: int
    """Calls in a pass, of all its modules."""
    modules: tuple[str, ...]
    """All modules that read its weights."""
    per_sample: bool
    """Whether axis 0 of its input is the sample, in every call: rows of region proposals or of tokens are not."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """The layers of a network, in the order in which they run."""

    ran: dict[str, Ran]
    idle: list[str]
    """Layers that are not called: auxiliary heads, data-dependent branches, layers whose weights another one reads."""
    other_macs: int
    """MACs of products outside of layers (attention, `F.conv2d` in a forward): not quantized, not in the BOPs."""


@torch.no_grad()
def census_of(model: nn.Module, example: Example, in_float: Mapping[str, str] | None = None) -> Census:
    """Run `model` once, in its current mode.

    Args:
        in_float: further layers that shall stay in float, with the reasons.

    Raises:
        SbsError: the model cannot run the example, runs no layer, or makes layers as it runs.
    """
    before = model.state_dict().keys()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)}
    owners = owners_of(layers)
    macs: dict[str, int] = {}
    read: dict[str, list[tuple[Tensor, int]]] = {}
    ran_modules: set[str] = set()

    def count(name: str, x: Tensor, y: Tensor) -> None:
        owner, layer = owners[name], layers[name]
        # The tensor's version shows an in-place operation between two readers.
        read.setdefault(owner, []).append((x, x._version))
        ran_modules.add(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if isinstance(layer, nn.Linear):
            positions = y.numel() // y.shape[-1]
        else:
            swept, channels = (x, layer.in_channels) if getattr(layer, "transposed", False) else (y, layer.out_channels)
            assert isinstance(channels, int)
            positions = swept.numel() // channels
        macs[owner] = macs.get(owner, 0) + weight.numel() * positions

    hooks = [
        m.register_forward_hook(lambda m, x, k, y, n=n: count(n, argument(x, k), y), with_kwargs=True)
        for n, m in layers.items()
    ]
    counter = FlopCounterMode(display=False)
    weights = _WeightUses(layers)
    try:
        with counter, weights, _quiet(), _written_out():
            example.run(model)
    except Exception as error:  # the user's network may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SbsError(f"the model cannot run inputs of {_shapes(example)}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if made := sorted(model.state_dict().keys() - before):
        raise SbsError(f"the model makes {made[0]} when it first runs; run it once in the function that builds it")
    if not macs:
        raise SbsError("the model runs no convolution and no linear layer; there is nothing to compress")
    elsewhere, constant = weights.outside(), constant_layers(model, example)
    samples, ran = example.samples, dict[str, Ran]()
    fewer = _sizes(model, example.first(samples - 1), layers, owners) if samples > 1 else {}
    for name, inputs in read.items():
        modules = tuple(module for module, owner in owners.items() if owner == name)
        reason = limits.CONSTANT_INPUT if constant.intersection(modules) else ""
        reason = reason or _why_float([layers[module] for module in modules], [x for x, _ in inputs], elsewhere)
        ran[name] = Ran(
            macs=max(1, round(macs[name] / samples)),
            float_reason=reason or (in_float or {}).get(name, ""),
            same_input=next(other for other, tensors in read.items() if _same(tensors, inputs)),
            calls=len(inputs),
            modules=modules,
            per_sample={len(x) for x, _ in inputs} == {samples} and fewer.get(name, {samples - 1}) == {samples - 1},
        )
    idle = [name for name in layers if name not in ran_modules]
    other = max(0, counter.get_total_flops() // 2 - sum(macs.values()))
    return Census(ran=ran, idle=idle, other_macs=round(other / samples))


def _shapes(example: Example) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in example.tensors)


def _why_float(modules: list[nn.Module], inputs: list[Tensor], elsewhere: set[int]) -> str:
    for layer in modules:
        if not isinstance(layer, KINDS):
            return limits.OTHER_KIND.format(kind=type(layer).__name__)
        if not isinstance(layer._parameters.get("weight"), nn.Parameter) or "bias" not in layer._parameters:
            return limits.COMPUTED_WEIGHTS
        if not computes_its_parent(layer, inputs[0]):
            return limits.SUBCLASS.format(kind=type(layer).__name__, parent=type(layer).__mro__[1].__name__)
        if id(layer.weight) in elsewhere:
            return limits.WEIGHTS_READ
    first = modules[0]
    if isinstance(first, nn.ConvTranspose2d) and first.groups > 1:
        return limits.GROUPED_TRANSPOSED
    plain = all(has_parents_forward(m) and not isinstance(m, nn.ConvTranspose2d) for m in modules)
    if len(modules) > 1 and (not plain or len({getattr(m, "groups", 1) for m in modules}) > 1):
        return limits.SHARED_WEIGHTS
    if isinstance(first, nn.Linear) and len({x.dim() > 2 for x in inputs}) > 1:
        return limits.MIXED_AXES  # graphs have two operators for that, with weights in two layouts
    return ""


def _same(one: list[tuple[Tensor, int]], other: list[tuple[Tensor, int]]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(x is y and before == now for (x, before), (y, now) in pairs)


def _sizes(
    model: nn.Module, example: Example, layers: Mapping[str, nn.Module], owners: Mapping[str, str]
) -> dict[str, set[int]]:
    """By layer, the sizes of axis 0 of its inputs; empty where the model does not run these samples."""
    found: dict[str, set[int]] = {}

    def see(owner: str, x: Tensor) -> None:
        found.setdefault(owner, set()).add(len(x))

    hooks = [
        layer.register_forward_pre_hook(lambda m, x, k, n=owners[name]: see(n, argument(x, k)), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        example.run(model)
    except Exception:  # noqa: BLE001  some networks fix their number of samples
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return found


def owners_of(layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """By layer, the first that has the same weight: both are one layer, called several times."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(_weight_of(layer)), name) for name, layer in layers.items()}


def _weight_of(layer: nn.Module) -> object:
    """The stored weight; the layer itself where it is computed, as reading it would make another tensor each time."""
    return layer._parameters.get("weight") if "weight" in layer._parameters else layer


class _WeightUses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not annotate it
    """Finds layers whose weights are read outside of their own `forward`, by a product for example."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = {id(layer.weight) for layer in layers.values()}
        self.running: list[int] = []
        self.found: set[int] = set()
        self.hooks = [
            hook
            for layer in layers.values()
            for hook in (
                layer.register_forward_pre_hook(lambda m, x: self.running.append(id(m.weight))),
                layer.register_forward_hook(lambda m, x, y: (self.running.pop(), None)[1]),
            )
        ]

    def outside(self) -> set[int]:
        """Stop counting; returns ids of the weights that were read outside of their layers."""
        for hook in self.hooks:
            hook.remove()
        return self.found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, nn.Parameter)}
        self.found |= (read & self.weights) - set(self.running)
        return func(*args, **(kwargs or {}))


@contextmanager
def _written_out() -> Iterator[None]:
    """Within the block, attention runs as single products: fused attention hides its layers and products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
