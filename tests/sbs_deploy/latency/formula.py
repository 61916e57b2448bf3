"""A machine whose times are a formula, in place of the measurement."""

from typing import Any

import pytest

from sbs_deploy.latency.networks import Network, Variant
from sbs_deploy.latency.profile import Profile, Task
from sbs_deploy.latency.steps import BEHIND
from sbs_deploy.latency.synthetic import owners_that_differ


class Formula:
    """A layer takes in * out / 1000 ms, what is behind it out / 1000, or twice that where its readers differ.

    A layer whose input is coarse takes half. A whole network takes a part of the sum of its steps, the one that
    makes the dense network 10 ms.
    """

    def __init__(self) -> None:
        self.visits = 0
        self.stop_at: int | None = None

    def measured(self, task: Task) -> dict[str, Any]:
        """Instead of a visit; the one numbered `stop_at` is interrupted."""
        self.visits += 1
        if self.visits == self.stop_at:
            raise KeyboardInterrupt
        steps = steps_of(task.network, task.variant)
        if not task.end_to_end:
            return steps
        dense = steps_of(task.network, Variant(kept={}, bits={}, held_out=False))
        found = {"quantized_ms": 10.0 * sum(steps.values()) / sum(dense.values())}
        return found if task.variant.held_out else found | {"speedup": 3.0, "interval": [2.9, 3.1]}

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Formula":
        """Every profile measures this, on a processor with VNNI whatever this one has."""
        monkeypatch.setattr("sbs_deploy.latency.profile.pairs_saturate", lambda: False)
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


def ignore(done: int, total: int, what: str) -> None:
    """Progress that nobody watches."""
