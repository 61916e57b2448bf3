"""Costs against hand arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_train.contract import cost


def test_bops_of_a_convolution_by_hand() -> None:
    # 3x3, 16 -> 32 channels, 8x8 outputs: 9 * 16 * 32 * 64 multiply-accumulates.
    macs = 9 * 16 * 32 * 64
    assert macs == 294_912
    assert cost.bops(macs, 32, 32) == macs * 1024
    assert cost.bops(macs, 16, 16) == macs * 256
    assert cost.bops(macs, 4, 8) == 9_437_184
    assert cost.bops(macs, 32, 32) / cost.bops(macs, 4, 4) == 64


@pytest.mark.parametrize(
    ("depthwise", "expected"),
    [(0.0, 1000 * 0.5 * 0.25), (1.0, 1000 * 0.25)],
)
def test_pruning_scales_the_count(depthwise: float, expected: float) -> None:
    assert cost.kept_macs(1000.0, 0.5, 0.25, depthwise=depthwise) == expected


@given(st.floats(1, 1e9), st.floats(0.1, 1), st.floats(0.1, 1))
def test_a_mask_of_layers_equals_the_layers_one_by_one(macs: float, kept_in: float, kept_out: float) -> None:
    together = cost.kept_macs(np.full(2, macs), kept_in, kept_out, depthwise=np.array([0.0, 1.0]))
    alone = [cost.kept_macs(macs, kept_in, kept_out, depthwise=flag) for flag in (0.0, 1.0)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(("bits", "deployable"), [(2, 8), (4, 8), (8, 8), (16, 16), (32, 32)])
def test_hardware_has_nothing_below_8_bits(bits: int, deployable: int) -> None:
    assert cost.deployable_bits(bits) == deployable


def test_weight_bytes_are_packed() -> None:
    assert cost.weight_bytes(1000, 2) == 250
    assert cost.weight_bytes(1000, 32) == 4000
