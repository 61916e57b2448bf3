"""How much of a predicted gain was realised, and what would raise that most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sbs_deploy.measure.ledger.verdict import CONVERTING, REALISED, LayerEntry

UNTRUSTED = "unknown: profiling disturbed the layers too much (measure on a quiet machine, or at a larger batch size)"
NAMED = 3
"""Layers of a lever that are named."""


@dataclass(frozen=True, kw_only=True)
class Realised:
    """One prediction against the measured speed-up."""

    predicted: float
    """Speed-up if time went with Bit-Operations."""
    measured: float
    """Speed-up over dense FP32, end to end."""
    share: float | None
    """log(measured) / log(predicted): 1 where all was realised, 0 where nothing was gained, below 0 where it became
    slower. Logarithms, since factors multiply: half the share is the square root of the factor. None where no gain was
    predicted."""
    low: float | None
    """Ends of the share's confidence interval, from that of the measured speed-up; None where there is none."""
    high: float | None


def realised(predicted: float, measured: float, interval: Sequence[float] | None) -> Realised:
    """The share of a prediction; `interval` is that of `measured`.

    >>> realised(16.0, 4.0, None).share
    0.5
    """
    share = _share(measured, predicted)
    low, high = (_share(end, predicted) for end in interval) if interval else (None, None)
    return Realised(predicted=predicted, measured=measured, share=share, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Lever:
    """Layers of one verdict, or one category between layers, and what mending that alone would save."""

    name: str
    layers: tuple[str, ...]
    """Empty for what lies between layers."""
    ms: float
    least_ms: float
    """What would remain: of layers that convert values their time without that, of others their time in dense FP32 over
    the speed-up that arithmetic allows, of what lies between layers nothing."""

    @property
    def saved_ms(self) -> float:
        """Milliseconds that mending it would save."""
        return self.ms - self.least_ms


def levers(entries: Sequence[LayerEntry], between: Mapping[str, float]) -> list[Lever]:
    """Everything that keeps the network from the gain that hardware can give, the largest saving first; layers whose
    verdict is that they gained it are no lever."""
    groups: dict[str, list[LayerEntry]] = {}
    for entry in entries:
        if entry.verdict not in REALISED:
            groups.setdefault(entry.verdict, []).append(entry)
    found = [
        Lever(
            name=verdict,
            layers=tuple(entry.name for entry in group),
            ms=sum(entry.ms or 0.0 for entry in group),
            least_ms=sum(_least_ms(entry) for entry in group),
        )
        for verdict, group in groups.items()
    ]
    found += [Lever(name=category, layers=(), ms=ms, least_ms=0.0) for category, ms in between.items()]
    return sorted((lever for lever in found if lever.saved_ms > 0), key=lambda lever: -lever.saved_ms)


def advice(lever: Lever | None, latency_ms: float, speedup: float) -> str:
    """What mending a lever would give; `speedup` is the one over dense FP32 as measured in turns."""
    if lever is None:
        return "nothing: every layer gained all that this backend allows"
    more = f" and {len(lever.layers) - NAMED} more" if len(lever.layers) > NAMED else ""
    where = f"{', '.join(lever.layers[:NAMED])}{more}" if lever.layers else "between layers"
    then = speedup * latency_ms / (latency_ms - lever.saved_ms)
    return (
        f"{lever.name} ({where}): {lever.saved_ms:.3g} of {latency_ms:.3g} ms to save, {then:.2f}x the speed of FP32 "
        f"instead of {speedup:.2f}x"
    )


def _least_ms(entry: LayerEntry) -> float:
    """What mending the cause that the verdict names would leave of a layer's time."""
    if entry.verdict == CONVERTING:
        return (entry.ms or 0.0) - entry.converting_ms
    return (entry.fp32_ms or 0.0) / entry.attainable


def _share(measured: float, predicted: float) -> float | None:
    return math.log(measured) / math.log(predicted) if predicted > 1 and measured > 0 else None
