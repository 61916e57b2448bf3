"""Measure the multiple in which a backend computes channels, since kernels compute whole blocks of channels.

A small network of a convolution, a depthwise convolution and another convolution is timed at many channels. All three
read the output of a ReLU, as most layers do: kernels for signed inputs have other blocks. A multiple is valid if going
up to it costs no time from any channels below; the largest valid multiple is taken.
"""

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.graph.names import INPUT, OUTPUT
from sbs_deploy.measure.devices.networks import ProfiledNetwork, Variant, network_of
from sbs_deploy.measure.devices.profile import Cache, DeviceProfile, Progress
from sbs_deploy.measure.devices.session import Setup

STEPS = (32, 16, 8, 4)
FREE = 0.04
"""Largest relative increase of time at which more channels count as free."""
CHANNELS = range(64, 97, 4)
"""Channels at which the network is measured."""
_IMAGE = (64, 28)
"""Channels and size of the small network's input."""


def measured_alignment(setup: Setup, cache: Cache, deadline: float | None, progress: Progress) -> int:
    """The multiple in which a backend computes channels; on a GPU the documented value, not measured.

    Raises:
        SbsError: the backend cannot measure the small network, or `deadline` passed.
    """
    if setup.backend.run_needs_gpu:
        return setup.backend.channel_multiple
    network, axis = alignment_network()
    profile = DeviceProfile([network], setup, align=1, points=2, cache=cache, whole=False)
    variants = [Variant(counts={axis: channels}, held_out=False) for channels in CHANNELS]
    profile.variants[network.name] = variants
    profile.run(deadline=deadline, progress=progress)
    profile.complete()  # raises SbsError if time ran out
    steps = {one.counts[axis]: profile.steps(network, one).values() for one in variants}
    return alignment_of({channels: sum(step["ms"] for step in found) for channels, found in steps.items()})


def alignment_network() -> tuple[ProfiledNetwork, int]:
    """The small network with the most channels, and the axis to measure."""
    most, (channels, size) = CHANNELS[-1], _IMAGE
    rng = np.random.default_rng(0)
    shapes = {
        "stem": (channels, channels, 1, 1),
        "full": (most, channels, 3, 3),
        "depthwise": (most, 1, 3, 3),
        "reader": (channels, most, 1, 1),
    }
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, np.float32), f"{name}.weight")
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", [INPUT, "stem.weight"], ["s"], "stem"),
        helper.make_node("Relu", ["s"], ["x"], "relu_0"),
        helper.make_node("Conv", ["x", "full.weight"], ["a"], "full", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu_1"),
        helper.make_node("Conv", ["b", "depthwise.weight"], ["c"], "depthwise", pads=[1] * 4, group=most),
        helper.make_node("Relu", ["c"], ["d"], "relu_2"),
        helper.make_node("Conv", ["d", "reader.weight"], ["e"], "reader"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "pool"),
        helper.make_node("Flatten", ["f"], [OUTPUT], "flat"),
    ]
    image = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", channels, size, size])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", channels])
    graph = helper.make_graph(nodes, "alignment", [image], [logits], weights)
    network = network_of(
        "alignment", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )
    full = next(layer for layer in network.axes.layers if layer.name == "full")
    return network, network.axes.root(full.channels_out)


def alignment_of(ms: Mapping[int, float]) -> int:
    """The multiple in which a backend computes channels, from milliseconds by channels.

    >>> alignment_of({4: 1.2, 8: 1.1, 12: 2.1, 16: 2.0})
    8
    """
    for step in STEPS:
        nexts = {channels: -(-channels // step) * step for channels in ms}
        if all(ms[above] <= (1 + FREE) * ms[channels] for channels, above in nexts.items() if above in ms):
            return step
    return STEPS[-1]
