"""A machine whose times are a formula, in place of the measurement."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.devices.channels import shapes_of
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile, VariantTask
from sbs_deploy.measure.devices.session import BEHIND, Setup, owners_of

FLOAT = 2.0
"""How many times as long a layer takes in float."""
SWITCH_MS, ELEMENT_MS = 0.05, 1e-6


class Formula:
    """A layer takes in * out / 1000 ms in INT8, what is behind it out / 1000, and FLOAT times as much in float.

    A change of precision takes SWITCH_MS and ELEMENT_MS an element. A whole network takes `part` of all that. Every
    step is one node of the engine; the profiler adds `overhead_ms` to each.
    """

    def __init__(self, overhead_ms: float = 0.0, part: float = 1.0) -> None:
        self.overhead_ms, self.part = overhead_ms, part
        self.visits = 0
        self.stop_at: int | None = None

    def measured(self, task: VariantTask) -> dict[str, Any]:
        """Instead of a visit; the one numbered `stop_at` is interrupted."""
        self.visits += 1
        if self.visits == self.stop_at:
            raise KeyboardInterrupt
        network = task.network
        variant = task.variant or Variant(counts={}, in_float=frozenset(network.layers))
        steps = steps_of(network, variant)
        profiled = {name: {"ms": ms + self.overhead_ms, "nodes": 1} for name, ms in steps.items()}
        dense = steps_of(network, Variant(counts={}))
        return {
            "ms": self.part * (sum(steps.values()) + switches_ms(network, variant)),
            "reference_ms": self.part * sum(dense.values()),
            "steps": profiled if variant.profiled else {},
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Formula":
        """Every profile measures this."""
        measure(monkeypatch, self.measured)
        return self


def measure(monkeypatch: pytest.MonkeyPatch, measured: Callable[[VariantTask], dict[str, Any]]) -> None:
    """Put a function in place of the measurement."""
    monkeypatch.setattr(DeviceProfile, "_reference", lambda profile, network: nullcontext())
    monkeypatch.setattr(DeviceProfile, "_measured", lambda profile, task, reference: measured(task))


def steps_of(network: ProfiledNetwork, variant: Variant) -> dict[str, float]:
    """Milliseconds by step."""
    found: dict[str, float] = {BEHIND: 0.5}
    for layer in network.axes.layers:
        inputs, outputs = network.ends(layer, variant.counts)
        factor = FLOAT if layer.name in variant.in_float else 1.0
        found[layer.name] = factor * (1 if layer.kind == "depthwise" else inputs) * outputs / 1000
        found[BEHIND + layer.name] = factor * outputs / 1000
    return found


def switches_ms(network: ProfiledNetwork, variant: Variant) -> float:
    """Milliseconds of all changes of precision between a layer and the last one before it."""
    owners, shapes = owners_of(network.model), shapes_of(network.model)
    total = 0.0
    for layer in network.axes.layers:
        tensor = network.model.graph.node[layer.node].input[0]
        before = owners[tensor]
        if before is not None and (before in variant.in_float) != (layer.name in variant.in_float):
            elements = np.prod(shapes[tensor][1:]) * network.parts(variant.counts)[layer.name][0]
            total += SWITCH_MS + ELEMENT_MS * elements
    return total


def profile_of(*networks: ProfiledNetwork, folder: Path, points: int) -> DeviceProfile:
    """Measurements on ONNX Runtime with one thread, kept in `folder`."""
    setup = Setup(backend=ONNXRUNTIME, threads=1, batch=1)
    return DeviceProfile(list(networks), setup, points=points, cache=Cache(folder / "cache.jsonl"))


def ignore(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
