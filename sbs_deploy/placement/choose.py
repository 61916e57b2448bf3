"""Choose the graph of an engine by racing whole graphs; profiles only say which graphs are worth a race.

A graph takes the place of another one only if it is faster beyond the noise of the race, and answers as well.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.measure.protocol import speedup
from sbs_deploy.placement.bench import EngineBench, Entrant, Race
from sbs_deploy.placement.candidates import float_sets, moves

WORTH = 1.003
"""Least speed-up, at the lower end of its confidence interval, that a change is made for."""
HOPELESS = 0.02
"""Loss by the profiles, relative to the latency, beyond which a change is not tried."""
FINALISTS = 4
CHALLENGERS = 3
"""Changes that race against the best graph at a time."""


@dataclass(kw_only=True)
class Choice:
    """The best graph so far, and what it was chosen by."""

    graph: Legalisation
    speeds: dict[Legalisation, float]
    """Speed-up of every graph over the plan's, as far as they met in a race, directly or by others between them."""
    refused: list[Legalisation] = field(default_factory=list)
    """Graphs that were faster and are not accurate."""
    int8_ms: dict[str, float] = field(default_factory=dict)
    """Profile of the best graph with all layers in INT8."""
    float_ms: dict[str, float] = field(default_factory=dict)
    """Profile of the pruned float network."""
    final: Race = field(default_factory=dict)
    """The last race: the chosen graph, the plan's, and the controls."""
    finished: bool = True
    """Whether all promising changes were tried."""

    def meet(self, bench: EngineBench, graphs: Sequence[Legalisation], part: float, *, controls: bool = False) -> Race:
        """Race graphs against the best one, which the fastest accurate graph replaces."""
        met = [one for one in dict.fromkeys(graphs) if one != self.graph and one not in self.refused]
        if not met and not controls:
            return {}
        before = self.graph
        race = bench.race([before, *met], part, controls=controls)
        speeds = {one: _speed(race, before, one) for one in met if one in race}
        self.speeds |= {one: speed * self.speeds[before] for one, speed in speeds.items() if one not in self.speeds}
        for one in sorted(speeds, key=lambda one: -speeds[one]):
            if _faster(race, before, one):
                if bench.accurate(one):
                    self.graph = one
                    break
                self.refused.append(one)
        return race


def choose(
    bench: EngineBench,
    base: Legalisation,
    forms: Sequence[Legalisation],
    order: Sequence[str],
    depthwise: Collection[str],
) -> Choice:
    """The fastest graph of the plan.

    Args:
        base: the plan's graph.
        forms: other graphs with all layers in INT8.
        order: names of the quantized layers, in the order in which they run.
        depthwise: the depthwise ones among them.
    """
    found = Choice(graph=base, speeds={base: 1.0})
    found.meet(bench, forms, 0.15, controls=True)
    form = found.graph
    found.int8_ms, found.float_ms = bench.profile(form), bench.profile(None)
    gains = {name: ms - found.float_ms[name] for name, ms in found.int8_ms.items() if name in found.float_ms}
    sets = [replace(form, float_layers=_sorted(one, order)) for one in float_sets(gains, order, depthwise)]
    race = found.meet(bench, sets, 0.2)
    fastest = sorted((one for one in race if one != found.graph), key=lambda one: -_speed(race, found.graph, one))
    found.meet(bench, [one for one in fastest[:FINALISTS] if isinstance(one, Legalisation)], 0.15)
    found.meet(bench, [replace(other, float_layers=found.graph.float_layers) for other in (base, *forms)], 0.1)
    found.finished = _improve(found, bench, gains, order)
    found.final = found.meet(bench, [replace(form, float_layers=tuple(order)), base], 0.1, controls=True)
    return found


def _improve(found: Choice, bench: EngineBench, gains: Mapping[str, float], order: Sequence[str]) -> bool:
    """Try small changes of the best graph while there is time; whether all were tried."""
    least = -HOPELESS * sum(found.int8_ms.values())
    tried: set[frozenset[str]] = set()
    while True:
        before, floats = found.graph, set(found.graph.float_layers)
        promising = (
            move
            for move in moves(floats, gains, order)
            if move not in tried
            and (
                sum(gains.get(one, 0.0) * (-1 if one in floats else 1) for one in move) >= least
                or _changes(floats ^ move, order) < _changes(floats, order)
            )
        )
        chosen = list(itertools.islice(promising, CHALLENGERS))
        if not chosen:
            return True
        if not bench.has_time():
            return False
        changed = {replace(before, float_layers=_sorted(floats ^ move, order)): move for move in chosen}
        race = found.meet(bench, list(changed), 0.05)
        # What was faster as well, and did not win, may add to the winner.
        again = {changed[one] for one in changed if one in race and one != found.graph and _faster(race, before, one)}
        tried |= set(chosen) - (again if found.graph != before else set())


def _changes(floats: Collection[str], order: Sequence[str]) -> int:
    """How often consecutive layers differ in precision: each change costs a conversion, which no profile shows."""
    return sum((one in floats) != (other in floats) for one, other in itertools.pairwise(order))


def _speed(race: Race, control: Entrant, one: Entrant) -> float:
    return float(np.median(race[control].medians_ms() / race[one].medians_ms()))


def _faster(race: Race, before: Entrant, one: Entrant) -> bool:
    """Whether a graph is faster beyond the noise."""
    return _speed(race, before, one) > WORTH and speedup(race[before], race[one])[1] > WORTH


def _sorted(names: Collection[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in names)
