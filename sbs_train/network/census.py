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

PLAIN = (nn.Conv2d, nn.Linear)
"""Layer types that can be quantized. Subclasses stay in float, as they may compute something else."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One layer of a forward pass."""

    macs: int
    """MACs for one sample."""
    float_reason: str
    """Why the layer stays in float; empty where it can be quantized."""
    same_input: str
    """The first layer that reads the same input tensor; the layer's own name if it is the first."""


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
    calls: dict[str, int] = {}
    macs: dict[str, int] = {}
    readers: list[tuple[Tensor, int, str]] = []
    same_input: dict[str, str] = {}

    def count(name: str, x: Tensor, y: Tensor) -> None:
        if name not in calls:
            # The tensor's version shows an in-place operation between two readers.
            earlier = (n for tensor, version, n in readers if tensor is x and version == x._version)
            same_input[name] = next(earlier, name)
            readers.append((x, x._version, name))
        calls[name] = calls.get(name, 0) + 1
        layer = layers[name]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if isinstance(layer, nn.Linear):
            positions = y.numel() // y.shape[-1]
        else:
            swept, channels = (x, layer.in_channels) if getattr(layer, "transposed", False) else (y, layer.out_channels)
            assert isinstance(channels, int)
            positions = swept.numel() // channels
        macs[name] = macs.get(name, 0) + weight.numel() * positions

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
    shared, elsewhere = _shared_weights(layers), weights.outside()
    constant = constant_layers(model, example)
    samples = example.samples
    ran = {
        name: Ran(
            macs=max(1, round(macs[name] / samples)),
            float_reason=limits.CONSTANT_INPUT
            if name in constant
            else _why_float(layers[name], calls[name], shared, elsewhere) or (in_float or {}).get(name, ""),
            same_input=same_input[name],
        )
        for name in macs
    }
    idle = [name for name in layers if name not in macs]
    other = max(0, counter.get_total_flops() // 2 - sum(macs.values()))
    return Census(ran=ran, idle=idle, other_macs=round(other / samples))


def _shapes(example: Example) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in example.tensors)


def _why_float(layer: nn.Module, calls: int, shared: set[int], elsewhere: set[int]) -> str:
    if type(layer) not in PLAIN:
        return limits.SUBCLASS.format(kind=type(layer).__name__)
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return limits.COMPUTED_WEIGHTS
    if calls > 1:
        return limits.SEVERAL_CALLS.format(calls=calls)
    if id(layer.weight) in shared:
        return limits.SHARED_WEIGHTS
    if id(layer.weight) in elsewhere:
        return limits.WEIGHTS_READ
    return ""


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


def _shared_weights(layers: Mapping[str, nn.Module]) -> set[int]:
    owners: dict[int, set[int]] = {}
    for layer in layers.values():
        owners.setdefault(id(layer.weight), set()).add(id(layer))
    return {weight for weight, modules in owners.items() if len(modules) > 1}


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
