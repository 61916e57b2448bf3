"""Outputs against a reference, by hand."""

import numpy as np
import pytest

from sbs_deploy.graph.comparison import Reference, compare, failure, floats_pass, kernels_pass, near
from sbs_train.contract.errors import SbsError

RNG = np.random.default_rng(0)
MAPS = RNG.standard_normal((100, 4, 3, 3)).astype(np.float32)
IDS = RNG.integers(0, 9, (100, 5))


def reference(**more: object) -> Reference:
    exact = {"map": MAPS[:10] + 1e-6, "ids": IDS[:10]}
    return Reference(outputs={"map": MAPS, "ids": IDS}, exact=exact, **more)  # type: ignore[arg-type]


def test_every_output_is_judged_by_itself() -> None:
    found = compare({"map": MAPS + np.float32(1e-6), "ids": IDS, "more": IDS}, reference())
    assert floats_pass(found) and kernels_pass(found)
    assert found["map"].classes is None and found["map"].values is None
    assert (found["ids"].values, found["ids"].error, found["ids"].max_abs_diff) == (500, 0.0, 0.0)
    off = compare({"map": MAPS * 1.5, "ids": IDS}, reference())
    assert not floats_pass(off) and "output map is off" in failure("it", off)
    # Half of each value: the error of a sample in the middle is half of its size, about 1.
    assert off["map"].error == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(("wrong", "floats", "kernels"), [(1, True, True), (2, False, True), (6, False, False)])
def test_integers_may_differ_in_a_part_of_their_values(wrong: int, floats: bool, kernels: bool) -> None:
    """One of 500 values in float, 1 in 100 with integer kernels."""
    ids = IDS.copy()
    ids.flat[:wrong] += 1
    found = compare({"map": MAPS, "ids": ids}, reference())
    assert found["ids"].error == wrong / 500
    assert (floats_pass(found), kernels_pass(found)) == (floats, kernels)
    if not kernels:
        assert "output ids" in failure("it", found)


def test_values_that_are_no_numbers_fail() -> None:
    maps = MAPS.copy()
    maps[:60] = np.nan
    found = compare({"map": maps, "ids": IDS}, reference())
    assert found["map"].max_abs_diff is None and not near(found["map"], 0.01)


def test_numbers_of_samples_and_outputs_without_samples() -> None:
    numbers, table = RNG.standard_normal(50).astype(np.float32), np.ones((3, 2), np.float32)
    outputs = {"number": numbers, "table": table, "one": np.float32(2.0).reshape(())}
    found = compare({name: one + np.float32(0.5) for name, one in outputs.items()}, Reference(outputs=outputs))
    assert found["number"].samples == 50 and found["one"].error == pytest.approx(0.25)
    assert not floats_pass(found) and floats_pass(compare(outputs, Reference(outputs=outputs)))


def test_labels_count_for_one_output_of_classes_alone() -> None:
    logits, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([0, 1, 2, 2])
    one = compare({"y": logits}, Reference(outputs={"y": logits}, labels=labels))["y"].classes
    assert one is not None and (one.top1, one.top1_agreement, one.disagreeing) == (75.0, 100.0, 0)
    two = compare({"y": logits, "z": logits}, Reference(outputs={"y": logits, "z": logits}, labels=labels))
    assert two["y"].classes is two["z"].classes is None
    maps = Reference(outputs={"y": logits[..., None]}, labels=labels)
    assert compare({"y": logits[..., None]}, maps)["y"].classes is None


@pytest.mark.parametrize("found", [{}, {"map": MAPS[:50], "ids": IDS}])
def test_a_missing_output_or_another_shape_is_an_error(found: dict[str, np.ndarray]) -> None:
    with pytest.raises(SbsError, match="output map is"):
        compare(found, reference())
