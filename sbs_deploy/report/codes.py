"""Histograms of the integer codes of weights, by layer and by bitwidth."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sbs_deploy.export.codes import load_codes
from sbs_train.contract.plan import Plan
from sbs_train.contract.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Weights by code."""

    title: str
    bits: int
    counts: dict[int, int]
    """Number of weights by code, ascending; codes that do not occur are left out."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(self.counts.values())


def code_histograms(run: RunDir, plan: Plan) -> tuple[Histogram, ...]:
    """A histogram of each bitwidth, then of every layer; empty before the export."""
    if not run.codes.is_file():
        return ()
    layers = [
        Histogram(title=name, bits=plan.layer(name).bits_w, counts=_counts(layer.codes))
        for name, layer in load_codes(run.codes).layers.items()
        if any(name == planned.name for planned in plan.layers)
    ]
    together = []
    for bits in sorted({layer.bits for layer in layers}):
        own = [layer for layer in layers if layer.bits == bits]
        counts = sum((Counter(layer.counts) for layer in own), Counter[int]())
        title = f"{len(own)} layer{'s' * (len(own) != 1)} of {bits} bits"
        together.append(Histogram(title=title, bits=bits, counts=dict(sorted(counts.items()))))
    return (*together, *layers)


def _counts(codes: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(codes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
