"""Answers of a graph against the plan's, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from sbs_deploy.export.golden_file import GoldenArrays
from sbs_deploy.graph.arrays import ArraySpec
from sbs_deploy.placement.answers import answers_of, as_good
from sbs_train.contract.placement import Answers

PLANNED = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
SPECS = (
    [ArraySpec(name="x", dtype="float32", shape=("batch", 1))],
    [ArraySpec(name="y", dtype="float32", shape=("batch", 2))],
)
GOLDEN = GoldenArrays(
    input_specs=SPECS[0],
    output_specs=SPECS[1],
    inputs={"x": PLANNED[:, :1]},
    outputs={"y": PLANNED},
    labels=np.array([0, 1, 1, 0]),
    plain={"y": PLANNED[:2] + 0.5},
)


def answers(found: np.ndarray, golden: GoldenArrays = GOLDEN) -> Answers:
    return answers_of({"y": found}, golden)


def test_classes_and_noise() -> None:
    assert answers(PLANNED) == Answers(top1=50.0, agreement=100.0, noise=1.0)
    swapped = PLANNED[:, ::-1]
    assert answers(swapped).agreement == 0.0
    assert answers(PLANNED + 2.5).noise == pytest.approx(4.0)
    assert answers(PLANNED + 0.5).noise == 0.0, "activations that are not rounded"
    assert answers(np.full_like(PLANNED, np.nan)).noise == 1e9
    assert answers(PLANNED, replace(GOLDEN, plain={})).noise is None


def test_without_classes_floats_are_judged_by_noise_and_integers_by_their_values() -> None:
    golden = replace(
        GOLDEN,
        outputs={"y": PLANNED, "n": np.array([[1, 2], [3, 4], [5, 6], [7, 8]])},
        plain={"y": PLANNED[:2] + 0.5, "n": np.zeros((2, 2), np.int64)},
    )
    plan = answers_of(golden.outputs, golden)
    assert plan == Answers(top1=None, agreement=100.0, noise=1.0)
    found = answers_of({"y": PLANNED + 0.5, "n": np.array([[1, 2], [3, 4], [5, 0], [0, 8]])}, golden)
    assert found == Answers(top1=None, agreement=75.0, noise=0.0)
    assert as_good(found, plan, 4) and not as_good(found, plan, 5)


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
