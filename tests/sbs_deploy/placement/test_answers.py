"""Answers of a graph against the plan's, by hand."""

import numpy as np
import pytest

from sbs_deploy.placement.answers import answers_of, as_good
from sbs_train.contract.placement import Answers

PLANNED = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
GOLDEN = {"logits": PLANNED, "labels": np.array([0, 1, 1, 0]), "float": PLANNED[:2] + 0.5}


def test_classes_and_noise() -> None:
    assert answers_of(PLANNED, GOLDEN) == Answers(top1=50.0, agreement=100.0, noise=1.0)
    swapped = PLANNED[:, ::-1]
    assert answers_of(swapped, GOLDEN).agreement == 0.0
    assert answers_of(PLANNED + 2.5, GOLDEN).noise == pytest.approx(4.0)
    assert answers_of(PLANNED + 0.5, GOLDEN).noise == 0.0, "activations that are not rounded"
    assert answers_of(np.full_like(PLANNED, np.nan), GOLDEN).noise == 1e9
    assert answers_of(PLANNED, {key: GOLDEN[key] for key in ("logits", "labels")}).noise is None


@pytest.mark.parametrize(
    ("top1", "noise", "images", "good"),
    [
        (90.0, 1.0, 1000, True),
        (89.5, 1.0, 1000, True),
        (89.4, 1.0, 1000, False),
        (87.5, 1.0, 40, True),  # one image
        (95.0, 2.1, 1000, False),
        (95.0, None, 1000, True),
    ],
)
def test_as_good_as_the_plan(top1: float, noise: float | None, images: int, good: bool) -> None:
    plan = Answers(top1=90.0, agreement=100.0, noise=1.0)
    assert as_good(Answers(top1=top1, agreement=0.0, noise=noise), plan, images) is good


def test_a_noisy_engine_of_the_plan_is_the_measure() -> None:
    """Saturating products, say."""
    plan = Answers(top1=90.0, agreement=90.0, noise=3.0)
    assert as_good(Answers(top1=90.0, agreement=90.0, noise=2.9), plan, 100)
