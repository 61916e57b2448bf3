"""How search_step.py measures a step: interleaved times, bytes saved for the backward pass, peak memory."""

import random
import resource
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from step_method import Method
from torch import Tensor

WARM_UP_STEPS = 4
"""Compilation, scales from statistics, momentum buffers, caches of the allocator."""


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


@dataclass(kw_only=True)
class Timing:
    """What the rounds gave for one method, per step."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    """Of this process: on a machine that others use as well, steadier than the clock."""
    page_faults: list[float] = field(default_factory=list)


def interleaved(methods: dict[str, Method], device: torch.device, rounds: int, seed: int = 0) -> dict[str, Timing]:
    """Timings by method; all methods run in every round, in random order.

    A round times one even and one odd step of a method and takes their mean: searches may alternate. What a method does
    in some steps only is timed in every round and counts with its share.
    """
    order = list(methods)
    timings = {name: Timing() for name in order}
    shuffle = random.Random(seed)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            start = _now(device)
            methods[name].step(0)
            methods[name].step(1)
            between = _now(device)
            methods[name].now_and_then()
            end = _now(device)
            every, timing = methods[name].every, timings[name]
            lists = (timing.seconds, timing.cpu_seconds, timing.page_faults)
            for values, a, b, c in zip(lists, start, between, end, strict=True):
                values.append((b - a) / 2 + (c - b) / every)
    return timings


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


def _now(device: torch.device) -> tuple[float, float, float]:
    """(seconds, CPU seconds, page faults) so far, once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time(), float(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
