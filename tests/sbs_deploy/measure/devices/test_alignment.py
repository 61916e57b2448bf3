"""The multiple in which a backend computes channels."""

from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.measure.devices.alignment import CHANNELS, STEPS, alignment_network, alignment_of


@given(st.sampled_from(STEPS), st.floats(0.01, 1), st.floats(0, 5), st.floats(0, 0.5))
def test_the_step_of_a_staircase_is_found(step: int, slope: float, offset: float, penalty: float) -> None:
    def cost(channels: int) -> float:
        blocks = -(-channels // step)
        return offset / 10 + slope * blocks * (1 if channels % step == 0 else 1 + penalty)

    found = alignment_of({channels: cost(channels) for channels in CHANNELS})
    assert found >= step
    flat = all(
        cost(-(-c // found) * found) <= 1.04 * cost(c) for c in CHANNELS if -(-c // found) * found <= CHANNELS[-1]
    )
    assert flat, "a larger step only where that is nearly free as well"


def test_what_onnxruntime_was_measured_to_do() -> None:
    # cout of a 3x3 convolution at 28x28 on an EPYC with AVX2.
    ms = dict(zip(range(64, 97, 4), [0.311, 0.398, 0.385, 0.435, 0.386, 0.478, 0.461, 0.505, 0.461], strict=True))
    assert alignment_of(ms) == 16


def test_the_network_has_one_axis_between_three_layers() -> None:
    network, axis = alignment_network()
    found = [(layer.name, network.ends(layer, {axis: 68})) for layer in network.axes.layers]
    assert found == [("stem", (64, 64)), ("full", (64, 68)), ("depthwise", (68, 68)), ("reader", (68, 64))]
    assert network.axes.sizes[axis] == CHANNELS[-1]
