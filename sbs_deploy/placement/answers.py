"""Whether a graph answers as well as the plan's."""

import numpy as np

from sbs_deploy.export.golden_file import GoldenArrays
from sbs_deploy.graph.arrays import Named
from sbs_deploy.graph.comparison import percent, rms, top1_of
from sbs_train.contract.placement import Answers

SAMPLES = 256
"""Golden samples that are asked."""
TOP1_POINTS = 0.5
"""Percentage points of top-1, or of integers that are the plan's, that a graph may be below the plan's graph; one
sample is always allowed."""
NOISE = 2.0
"""Most `Answers.noise` of a graph: as if its activations had one bit less. It judges networks without training as well,
whose classes say nothing."""
NO_NUMBER = 1e9
"""Noise of outputs that are not finite."""


def answers_of(outputs: Named, golden: GoldenArrays) -> Answers:
    """Compare an engine's outputs with golden answers."""
    ratios, equal = [], []
    for name, planned in golden.outputs.items():
        found, unrounded = outputs[name], golden.plain.get(name)
        if planned.dtype.kind != "f":
            equal.append(percent(found == planned))
        elif unrounded is not None:
            count = len(np.atleast_1d(unrounded))
            own, other = (np.atleast_1d(one)[:count] - unrounded for one in (planned, found))
            ratios.append(rms(other) / max(rms(own), 1e-12))
    if golden.reference.classes is not None:
        equal = [percent(outputs[name].argmax(1) == one.argmax(1)) for name, one in golden.outputs.items()]
    noise = max((ratio if ratio < NO_NUMBER else NO_NUMBER for ratio in ratios), default=None)
    return Answers(top1=top1_of(outputs, golden.labels), agreement=min(equal, default=None), noise=noise)


def as_good(found: Answers, plan: Answers, samples: int) -> bool:
    """Whether top-1, integers and noise of a graph are near those of the plan's graph.

    Args:
        plan: answers of the plan's graph on the same backend.
        samples: number of samples that were asked.
    """
    quiet = found.noise is None or found.noise <= max(NOISE, plan.noise or 0.0)
    judged = (found.agreement, plan.agreement) if plan.top1 is None else (found.top1, plan.top1)
    return quiet and (judged[0] or 0.0) >= (judged[1] or 0.0) - max(TOP1_POINTS, 100 / samples) - 1e-9


def in_words(found: Answers, plan: Answers) -> str:
    """How the answers of a graph differ from those of the plan's graph, for people."""
    noise = f"{found.noise or 0:.2g} times the noise of the plan"
    if found.top1 is None:
        return noise if found.agreement is None else f"{found.agreement:.2f} % of its integers are the plan's, {noise}"
    return f"top-1 {found.top1:.2f} % (the plan's graph {plan.top1:.2f} %), {noise}"
