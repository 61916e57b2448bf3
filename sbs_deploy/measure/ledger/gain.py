"""How much of a predicted speed-up was realised, and which change would add most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sbs_deploy.measure.ledger.verdict import CONVERTING, REALISED, LayerEntry

UNTRUSTED = "unknown: profiling disturbed the layers too much (measure on a quiet machine, or at a larger batch size)"
NAMED = 3
"""Most layers named per lever."""


@dataclass(frozen=True, kw_only=True)
class Realised:
    """One prediction against the measured speed-up."""

    predicted: float
    """Speed-up if time were proportional to Bit-Operations."""
    measured: float
    """Speed-up over dense FP32, end to end."""
    share: float | None
    """log(measured) / log(predicted): 1 if all was realised, 0 for no gain, negative for a slowdown. Logarithms, since
    factors multiply: a share of one half is the square root of the factor. None if no gain was predicted."""
    low: float | None
    """Lower end (`high`: upper end) of the share's confidence interval; None without an interval of `measured`."""
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
    """Layers of one verdict, or one category between layers, and the saving from fixing it alone."""

    name: str
    layers: tuple[str, ...]
    """Names of the layers; empty for a category between layers."""
    ms: float
    least_ms: float
    """Milliseconds after a fix: for layers that convert values the time without conversion, for other layers their time
    in dense FP32 over the attainable speed-up, between layers nothing."""

    @property
    def saved_ms(self) -> float:
        """Milliseconds that a fix would save."""
        return self.ms - self.least_ms


def levers(entries: Sequence[LayerEntry], between: Mapping[str, float]) -> list[Lever]:
    """All levers, the largest saving first; layers with the full gain are left out."""
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
    """A sentence on the gain from fixing a lever; `speedup` is the measured one over dense FP32."""
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
    """Milliseconds of a layer after fixing the cause in its verdict."""
    if entry.verdict == CONVERTING:
        return (entry.ms or 0.0) - entry.converting_ms
    return (entry.fp32_ms or 0.0) / entry.attainable


def _share(measured: float, predicted: float) -> float | None:
    return math.log(measured) / math.log(predicted) if predicted > 1 and measured > 0 else None
