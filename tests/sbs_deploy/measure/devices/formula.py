"""A machine whose times are a formula, in place of the measurement."""

from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile, VariantTask
from sbs_deploy.measure.devices.session import BEHIND, Setup


class Formula:
    """A layer takes in * out / 1000 ms, what is behind it out / 1000.

    A whole network takes a part of the sum of its steps, the one that makes the dense network 10 ms. Every step is one
    node of the engine; the profiler adds `overhead_ms` to each.
    """

    def __init__(self, overhead_ms: float = 0.0) -> None:
        self.overhead_ms = overhead_ms
        self.visits = 0
        self.stop_at: int | None = None

    def measured(self, task: VariantTask) -> dict[str, Any]:
        """Instead of a visit; the one numbered `stop_at` is interrupted."""
        self.visits += 1
        if self.visits == self.stop_at:
            raise KeyboardInterrupt
        if task.beside_float:
            return {"speedup": 3.0, "interval": [2.9, 3.1]}
        steps = steps_of(task.network, task.variant)
        dense = steps_of(task.network, Variant(counts={}, held_out=False))
        return {
            "whole_ms": 10.0 * sum(steps.values()) / sum(dense.values()),
            "steps": {name: {"ms": ms + self.overhead_ms, "nodes": 1} for name, ms in steps.items()},
        }

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Formula":
        """Every profile measures this."""
        monkeypatch.setattr(DeviceProfile, "_measured", lambda profile, task: self.measured(task))
        return self


def steps_of(network: ProfiledNetwork, variant: Variant) -> dict[str, float]:
    """Milliseconds by step."""
    found: dict[str, float] = {BEHIND: 0.5}
    for layer in network.axes.layers:
        inputs, outputs = network.ends(layer, variant.counts)
        found[layer.name] = (1 if layer.kind == "depthwise" else inputs) * outputs / 1000
        found[BEHIND + layer.name] = outputs / 1000
    return found


def profile_of(*networks: ProfiledNetwork, folder: Path, align: int, points: int) -> DeviceProfile:
    """Measurements on ONNX Runtime with one thread, kept in `folder`."""
    setup = Setup(backend=ONNXRUNTIME, threads=1, batch=1)
    return DeviceProfile(list(networks), setup, align=align, points=points, cache=Cache(folder / "cache.jsonl"))


def ignore(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
