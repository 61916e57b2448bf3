"""A bench whose times are known: a chain of layers, and a price for every change between INT8 and float."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.measure.protocol import Measurement
from sbs_deploy.placement.bench import Entrant

BASE = Legalisation(precision="int8")
PROMOTED = Legalisation(precision="int8", activations="promote")
SLIM = "fp32 slim"
ROUNDS = 15


@dataclass(kw_only=True)
class FakeBench:
    """Times in milliseconds by layer."""

    int8_ms: Sequence[float]
    float_ms: Sequence[float]
    switch_ms: float = 0.0
    promoted: float = 1.0
    """Factor of INT8 times with promoted activations."""
    noise: float = 0.0
    """Deviation of one contestant in one round; a neighbour's load moves all contestants of a round."""
    seed: int = 0
    races: int = 1000
    """Number of races that there is time for."""
    profiled: bool = True
    accurate: Callable[[Legalisation], bool] = field(default=lambda graph: True)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.order = [f"layer{i}" for i in range(len(self.int8_ms))]

    def ms(self, graph: Entrant) -> float:
        """The true time of a graph, or of the float network."""
        if isinstance(graph, str):
            return sum(self.float_ms)
        factor = self.promoted if graph.activations == "promote" else 1.0
        floats = [name in graph.float_layers for name in self.order]
        switches = sum(a != b for a, b in itertools.pairwise(floats))
        times = zip(floats, self.int8_ms, self.float_ms, strict=True)
        return sum(b if chosen else factor * a for chosen, a, b in times) + switches * self.switch_ms

    def race(
        self, graphs: Sequence[Legalisation], part: float, *, controls: bool = False
    ) -> dict[Entrant, Measurement]:
        self.races -= 1
        entrants: list[Entrant] = [*graphs, *([SLIM] if controls else [])]
        load = self.rng.uniform(1, 4, ROUNDS) if self.noise else np.ones(ROUNDS)
        return {
            one: Measurement(
                rounds_ms=tuple((ms,) for ms in self.ms(one) * load * self.rng.normal(1, self.noise, ROUNDS).clip(0.5))
            )
            for one in entrants
        }

    def profile(self, graph: Legalisation | None) -> dict[str, float]:
        if not self.profiled:
            return {}
        factor = self.promoted if graph is not None and graph.activations == "promote" else 1.0
        times = self.float_ms if graph is None else [factor * ms for ms in self.int8_ms]
        return dict(zip(self.order, times, strict=True))

    def has_time(self) -> bool:
        return self.races > 0
