"""A machine whose times are a formula, in place of the measurement."""

from pathlib import Path
from typing import Any

import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.devices.cache import Cache
from sbs_deploy.measure.devices.networks import Network, Variant
from sbs_deploy.measure.devices.profile import Profile, Task
from sbs_deploy.measure.devices.session import Setup
from sbs_deploy.measure.devices.steps import BEHIND
from sbs_deploy.measure.devices.synthetic import owners_that_differ


class Formula:
    """A layer takes in * out / 1000 ms, what is behind it out / 1000, or twice that where its readers differ.

    A layer whose input is coarse takes half. A whole network takes a part of the sum of its steps, the one that
    makes the dense network 10 ms. What is behind a layer whose readers differ is three nodes of the engine, everything
    else one; the profiler adds `overhead_ms` to each.
    """

    def __init__(self, overhead_ms: float = 0.0) -> None:
        self.overhead_ms = overhead_ms
        self.visits = 0
        self.stop_at: int | None = None

    def measured(self, task: Task) -> dict[str, Any]:
        """Instead of a visit; the one numbered `stop_at` is interrupted."""
        self.visits += 1
        if self.visits == self.stop_at:
            raise KeyboardInterrupt
        if task.beside_float:
            return {"speedup": 3.0, "interval": [2.9, 3.1]}
        steps = steps_of(task.network, task.variant)
        dense = steps_of(task.network, Variant(kept={}, bits={}, held_out=False))
        return {
            "whole_ms": 10.0 * sum(steps.values()) / sum(dense.values()),
            "steps": {name: self._profiled(name, ms, task) for name, ms in steps.items()},
        }

    def _profiled(self, name: str, ms: float, task: Task) -> dict[str, float]:
        split = owners_that_differ(task.network.shared, task.variant.bits)
        nodes = 3 if name.removeprefix(BEHIND) in split and name.startswith(BEHIND) else 1
        return {"ms": ms + nodes * self.overhead_ms, "nodes": nodes}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Formula":
        """Every profile measures this, on a processor with VNNI whatever this one has."""
        monkeypatch.setattr("sbs_deploy.measure.devices.profile.pairs_saturate", lambda: False)
        monkeypatch.setattr(Profile, "_measured", lambda profile, task: self.measured(task))
        return self


def steps_of(network: Network, variant: Variant) -> dict[str, float]:
    """Milliseconds by step."""
    found: dict[str, float] = {BEHIND: 0.5}
    split = owners_that_differ(network.shared, variant.bits)
    for layer in network.axes.layers:
        inputs, outputs = network.ends(layer, variant.kept)
        found[layer.name] = (1 if layer.kind == "depthwise" else inputs) * outputs / 1000
        if variant.bits.get(layer.name) == 2:
            found[layer.name] /= 2
        found[BEHIND + layer.name] = outputs / 1000 * (2 if layer.name in split else 1)
    return found


def profile_of(*networks: Network, folder: Path, align: int, points: int) -> Profile:
    """Measurements on ONNX Runtime with one thread, kept in `folder`."""
    setup = Setup(backend=ONNXRUNTIME, threads=1, batch=1)
    return Profile(list(networks), setup, align=align, points=points, cache=Cache(folder / "cache.jsonl"))


def ignore(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
