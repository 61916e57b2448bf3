"""One training step of one method, and how search_step.py measures it: interleaved times, saved and peak memory."""

import random
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARM_UP_STEPS = 4
"""Compilation, scales from statistics, momentum buffers, caches of the allocator."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The network, the batch and the device of a comparison."""

    model: str
    width: int
    image: int
    """Height and width of the images in pixels; they have 3 channels."""
    batch: int
    classes: int
    device: torch.device

    def data(self) -> tuple[Tensor, Tensor]:
        """(x_NCHW, y_N), random and the same for every method; x lies as convolutions like it best."""
        generator = torch.Generator().manual_seed(0)
        x_NCHW = torch.randn(self.batch, 3, self.image, self.image, generator=generator)
        y_N = torch.randint(0, self.classes, (self.batch,), generator=generator)
        return x_NCHW.to(self.device), y_N.to(self.device)


Loss = Callable[[int], Tensor]
"""Forward pass of the step with this index, the loss included; even and odd steps may differ."""


def nothing() -> None:
    """What a method without extra state does after the optimizer."""


@dataclass(kw_only=True)
class Method:
    """A network in training."""

    name: str
    bits: str
    note: str
    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    finish: Callable[[], None] = nothing
    """What the method does after the weights' optimizer: thresholds, limits, controller."""
    now_and_then: Callable[[], None] = nothing
    """What happens in one of `every` steps; `step` leaves it out."""
    every: int = 1

    def step(self, index: int) -> None:
        """One training step, everything it takes."""
        self.model.zero_grad()
        self.loss(index).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.finish()


def method(name: str, bits: str, note: str, model: nn.Module, setting: Setting, loss: Loss | None = None) -> Method:
    """A method whose loss is the cross-entropy of `model` unless given, with the setting's optimizer."""
    x_NCHW, y_N = setting.data()
    # A small rate: the weights of all methods stay near where they started, so no step gets unusual values.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def cross_entropy(index: int) -> Tensor:
        return F.cross_entropy(model(x_NCHW), y_N)

    return Method(name=name, bits=bits, note=note, model=model, loss=loss or cross_entropy, optimizer=optimizer)


def inputs_of(model: nn.Module, layers: dict[str, nn.Module], x_NCHW: Tensor) -> dict[str, tuple[bool, float]]:
    """(whether it takes negative values, largest magnitude) of every layer's input, from one pass in training mode.

    The statistics of normalisation layers move with that pass; training does not read them.
    """
    found: dict[str, tuple[bool, float]] = {}

    def look(name: str, x: Tensor) -> None:
        found[name] = (bool(x.min() < 0), float(x.abs().max()))

    hooks = [layer.register_forward_pre_hook(lambda _, x, n=name: look(n, x[0])) for name, layer in layers.items()]
    with torch.no_grad():
        model.train()(x_NCHW)
    for hook in hooks:
        hook.remove()
    return found


class _Packed:
    """A tensor as a graph holds it: alive as long as its node is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(method: Method) -> int:
    """Bytes of the distinct storages that the graph holds when the backward pass starts.

    Parameters and buffers are not counted: they are there anyway. A tensor saved by several nodes counts once, and so
    does one that a custom autograd function saved with `save_for_backward`; a view counts as what it keeps alive.
    """
    state = [*method.model.parameters(), *method.model.buffers()]
    skip = {tensor.untyped_storage().data_ptr() for tensor in state}
    live: weakref.WeakSet[_Packed] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Packed:
        packed = _Packed(tensor.detach())  # with its history it would keep its own node alive
        live.add(packed)
        return packed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        loss = method.loss(0)
    sizes: dict[int, int] = {}
    for packed in live:
        storage = packed.tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            sizes[storage.data_ptr()] = storage.nbytes()
    loss.backward()  # type: ignore[no-untyped-call]
    method.model.zero_grad()
    return sum(sizes.values())


def peak_bytes(method: Method, device: torch.device) -> int:
    """The most memory tensors took during a step beyond what they took before it: activations and gradients.

    CUDA: the caching allocator's own statistics. CPU: allocations and releases of torch's allocator in the order in
    which the profiler saw them; scratch memory inside a library does not show.
    """
    method.model.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method.step(0)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        method.step(0)
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def interleaved(methods: dict[str, Method], device: torch.device, rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds a step of each method, one value a round; all methods run in every round, in random order.

    A round times one even and one odd step of a method and takes their mean: searches may alternate. What a method does
    in some steps only is timed in every round and counts with its share.
    """
    order = list(methods)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    shuffle = random.Random(seed)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            start = _now(device)
            methods[name].step(0)
            methods[name].step(1)
            between = _now(device)
            methods[name].now_and_then()
            seconds[name].append((between - start) / 2 + (_now(device) - between) / methods[name].every)
    return seconds


def warm_up(method: Method) -> None:
    """Run the first steps, and check that the method trains: a finite loss, a gradient for every weight matrix."""
    for index in range(WARM_UP_STEPS):
        method.step(index)
    method.now_and_then()
    method.model.zero_grad()
    loss = method.loss(0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss), f"{method.name}: the loss is {float(loss)}"
    for name, parameter in method.model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), f"{method.name}: {name}"
            assert parameter.grad.abs().max() > 0, f"{method.name}: {name} gets no gradient"


def _now(device: torch.device) -> float:
    """Seconds so far, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
