"""Choose the graph of an engine by racing whole graphs; profiles only say which graphs are worth a race.

A graph takes the place of another one only if it is faster beyond the noise of the race, and answers as well.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from sbs_deploy.legalise.graph import Legalisation
from sbs_deploy.measure.protocol import Measurement, speedup
from sbs_deploy.placement.candidates import float_sets, moves

WORTH = 1.003
"""Least speed-up, at the lower end of its confidence interval, that a change is made for."""
HOPELESS = 0.02
"""Loss by the profiles, relative to the latency, beyond which a change is not tried."""
FINALISTS = 4
CHALLENGERS = 3
"""Changes that race against the best graph at a time."""

Entrant = Legalisation | str
"""A graph of the plan, or the label of a float control."""
Race = Mapping[Entrant, Measurement]


class Bench(Protocol):
    """What measures graphs."""

    def race(self, graphs: Sequence[Legalisation], part: float, *, controls: bool = False) -> Race:
        """Milliseconds by round of graphs that take turns. Graphs that cannot run are left out, and where time is short
        the last ones; the first two are not.

        Args:
            part: part of all minutes that the race may take.
            controls: whether the float controls race as well.
        """

    def profile(self, graph: Legalisation | None) -> dict[str, float]:
        """Milliseconds by layer, with what follows the layer, of a graph or of the pruned float network (None); empty
        where the backend has no profiler."""

    def accurate(self, graph: Legalisation) -> bool:
        """Whether a graph answers as well as the plan's."""

    def has_time(self) -> bool:
        """Whether minutes are left for another race, besides the final one."""


@dataclass(kw_only=True)
class Choice:
    """The chosen graph, and what it was chosen by."""

    graph: Legalisation
    final: Race
    """The last race: the chosen graph, the plan's, and the controls."""
    int8_ms: dict[str, float] = field(default_factory=dict)
    """Profile of the best graph with all layers in INT8."""
    float_ms: dict[str, float] = field(default_factory=dict)
    """Profile of the pruned float network."""
    speeds: dict[Legalisation, float] = field(default_factory=dict)
    """Speed-up of every graph over the plan's, as far as they met in a race, directly or by others between them."""
    refused: list[Legalisation] = field(default_factory=list)
    """Graphs that were faster and are not accurate."""
    finished: bool = True


def choose(
    bench: Bench,
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
    search = _Search(bench, base)
    search.meet(forms, 0.15, controls=True)
    search.int8_ms, search.float_ms = bench.profile(search.best), bench.profile(None)
    gains = {name: search.int8_ms[name] - search.float_ms[name] for name in search.int8_ms if name in search.float_ms}
    form = search.best
    sets = [replace(form, float_layers=_sorted(one, order)) for one in float_sets(gains, order, depthwise)]
    race = search.meet(sets, 0.2)
    fastest = sorted((one for one in race if one != search.best), key=lambda one: -_speed(race, search.best, one))
    search.meet([one for one in fastest[:FINALISTS] if isinstance(one, Legalisation)], 0.15)
    search.meet([replace(other, float_layers=search.best.float_layers) for other in (base, *forms)], 0.1)
    finished = _improve(search, gains, order)
    everything = replace(form, float_layers=tuple(order))
    final = search.meet([everything, base], 0.1, controls=True)
    return Choice(
        graph=search.best,
        final=final,
        int8_ms=search.int8_ms,
        float_ms=search.float_ms,
        speeds=search.speeds,
        refused=search.refused,
        finished=finished,
    )


class _Search:
    """The best graph so far."""

    def __init__(self, bench: Bench, base: Legalisation) -> None:
        self.bench, self.best = bench, base
        self.speeds: dict[Legalisation, float] = {base: 1.0}
        self.refused: list[Legalisation] = []
        self.int8_ms: dict[str, float] = {}
        self.float_ms: dict[str, float] = {}

    def meet(self, graphs: Sequence[Legalisation], part: float, *, controls: bool = False) -> Race:
        """Race graphs against the best one, which the fastest accurate graph replaces."""
        met = [one for one in dict.fromkeys(graphs) if one != self.best and one not in self.refused]
        if not met and not controls:
            return {}
        before = self.best
        race = self.bench.race([before, *met], part, controls=controls)
        speeds = {one: _speed(race, before, one) for one in met if one in race}
        self.speeds |= {one: speed * self.speeds[before] for one, speed in speeds.items() if one not in self.speeds}
        for one in sorted(speeds, key=lambda one: -speeds[one]):
            if _faster(race, before, one):
                if self.bench.accurate(one):
                    self.best = one
                    break
                self.refused.append(one)
        return race


def _improve(search: _Search, gains: Mapping[str, float], order: Sequence[str]) -> bool:
    """Try small changes of the best graph while there is time; whether all were tried."""
    least = -HOPELESS * sum(search.int8_ms.values())
    tried: set[frozenset[str]] = set()
    while True:
        floats = set(search.best.float_layers)
        promising = (
            move
            for move in moves(floats, gains, order)
            if move not in tried and sum(gains.get(one, 0.0) * (-1 if one in floats else 1) for one in move) >= least
        )
        chosen = list(itertools.islice(promising, CHALLENGERS))
        if not chosen:
            return True
        if not search.bench.has_time():
            return False
        before = search.best
        changed = {replace(before, float_layers=_sorted(floats ^ move, order)): move for move in chosen}
        race = search.meet(list(changed), 0.05)
        # What was faster as well, and did not win, may add to the winner.
        again = {changed[one] for one in changed if one in race and one != search.best and _faster(race, before, one)}
        tried |= set(chosen) - (again if search.best != before else set())


def _speed(race: Race, control: Entrant, one: Entrant) -> float:
    return float(np.median(race[control].medians_ms() / race[one].medians_ms()))


def _faster(race: Race, before: Entrant, one: Entrant) -> bool:
    """Whether a graph is faster beyond the noise."""
    return _speed(race, before, one) > WORTH and speedup(race[before], race[one])[1] > WORTH


def _sorted(names: Collection[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in names)
