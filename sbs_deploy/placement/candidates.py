"""Graphs worth timing: forms of the whole plan, and sets of layers in float.

A gain is what a layer saves in float: its INT8 milliseconds less its float ones, by two profiles. Gains say nothing
about conversions that a change adds or removes, so they only order what is timed.
"""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sbs_deploy.backends.spec import Backend
from sbs_deploy.legalise.graph import Legalisation, check_legalisation
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import Plan

CHOICES: dict[str, tuple[str, ...]] = {
    "outputs": ("none", "layers", "all"),
    "activations": ("exact", "promote-8", "promote"),
}
"""Values of the options of `Legalisation` that placement may choose, by the option's name; the plan's own first."""
SWITCH_COSTS = (0.0, 0.03, 0.1, 0.3, 1.0)
"""Assumed costs of a change between INT8 and float, relative to the largest gain."""
PARTS = (0.5, 0.8)
"""Parts of the sum of all gains that the slowest layers alone account for."""
WINDOW = 4
"""Most consecutive layers that are changed together."""


def forms(base: Legalisation, free: Collection[str], backend: Backend, plan: Plan) -> list[Legalisation]:
    """All forms of the plan's graph but `base` that the backend can execute and the plan has ranges for.

    Args:
        free: options that may be chosen; the others stay as they are in `base`.
    """
    names = [name for name in CHOICES if name in free]
    found = []
    for values in itertools.product(*(CHOICES[name] for name in names)):
        chosen: dict[str, Any] = dict(zip(names, values, strict=True))
        form = replace(base, **chosen)
        with contextlib.suppress(SbsError):
            check_legalisation(backend, form, plan)
            found.append(form)
    return [form for form in found if form != base]


def float_sets(gains: Mapping[str, float], order: Sequence[str], depthwise: Collection[str]) -> list[frozenset[str]]:
    """Sets of layers to try in float: slow regions, the slowest layers, depthwise layers, all layers.

    Args:
        gains: gain of each layer; without a profile empty.
        order: names of the quantized layers, in the order in which they run.
    """
    largest = max((gain for gain in gains.values() if gain > 0), default=0.0)
    slow = [name for name in order if gains.get(name, 0.0) > 0]
    found = [regions(gains, order, cost * largest) for cost in SWITCH_COSTS] if slow else []
    slowest, total = sorted(slow, key=lambda name: -gains[name]), sum(gains[name] for name in slow)
    for part in PARTS:
        sums = itertools.accumulate(gains[name] for name in slowest)
        found.append(frozenset(slowest[: 1 + sum(one < part * total for one in sums)]))
    found += [frozenset(depthwise), frozenset((*depthwise, *slow)), frozenset(order)]
    return [one for one in dict.fromkeys(found) if one]


def regions(gains: Mapping[str, float], order: Sequence[str], switch_ms: float) -> frozenset[str]:
    """The set of layers in float with the largest gain, if every change between INT8 and float costs `switch_ms`.

    The layers count as a chain (Viterbi's algorithm with two states).
    """
    best: tuple[float, frozenset[str]] = (0.0, frozenset())
    other: tuple[float, frozenset[str]] = (0.0, frozenset())
    for name in order:
        stay, enter = other, (best[0] - switch_ms, best[1])
        keep, leave = best, (other[0] - switch_ms, other[1])
        gain, names = max(stay, enter, key=lambda one: one[0])
        best, other = max(keep, leave, key=lambda one: one[0]), (gain + gains.get(name, 0.0), names | {name})
    return max(best, other, key=lambda one: one[0])[1]


def moves(floats: Collection[str], gains: Mapping[str, float], order: Sequence[str]) -> Iterator[frozenset[str]]:
    """Small changes of a set of float layers, the most promising first, each as the layers that change sides.

    Consecutive layers that are all in INT8, or all in float.
    """
    found: dict[frozenset[str], float] = {}
    for in_float, run in itertools.groupby(order, key=lambda name: name in floats):
        names = list(run)
        sign = -1 if in_float else 1
        parts = [names[at : at + size] for size in range(1, WINDOW + 1) for at in range(len(names) - size + 1)]
        for part in (names, *parts):
            found.setdefault(frozenset(part), sign * sum(gains.get(name, 0.0) for name in part))
    yield from sorted(found, key=lambda part: -found[part])
