"""Whether a graph answers as well as the plan's."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from sbs_deploy.graph.comparison import percent, rms
from sbs_deploy.graph.names import FloatArray
from sbs_train.contract.placement import Answers

IMAGES = 256
"""Golden images that are asked."""
TOP1_POINTS = 0.5
"""Percentage points of top-1 that a graph may be below the plan's graph; one image is always allowed."""
NOISE = 2.0
"""Most `Answers.noise` of a graph: as if its activations had one bit less. It judges networks without training as well,
whose classes say nothing."""
NO_NUMBER = 1e9
"""Noise of logits that are not finite."""


def answers_of(logits: FloatArray, golden: Mapping[str, npt.NDArray[Any]]) -> Answers:
    """Compare an engine's logits (N, classes) with golden answers.

    Args:
        golden: the plan's `logits`, the `labels`, and for the first images `float`, logits without rounded activations.
    """
    planned, noise = golden["logits"], None
    if "float" in golden:
        unrounded = golden["float"]
        count = len(unrounded)
        ratio = rms(logits[:count] - unrounded) / max(rms(planned[:count] - unrounded), 1e-12)
        noise = ratio if ratio < NO_NUMBER else NO_NUMBER
    return Answers(
        top1=percent(logits.argmax(1) == golden["labels"]),
        agreement=percent(logits.argmax(1) == planned.argmax(1)),
        noise=noise,
    )


def as_good(found: Answers, plan: Answers, images: int) -> bool:
    """Whether top-1 and noise of a graph are near those of the plan's graph.

    Args:
        plan: answers of the plan's graph on the same backend.
        images: number of images that were asked.
    """
    quiet = found.noise is None or found.noise <= max(NOISE, plan.noise or 0.0)
    return quiet and found.top1 >= plan.top1 - max(TOP1_POINTS, 100 / images) - 1e-9
