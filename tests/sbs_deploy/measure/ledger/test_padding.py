from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.ledger.padding import Padding, aligned, padding_of
from sbs_train.contract.cost import computed_channels
from sbs_train.contract.plan import ChannelGroup, LayerPlan, ModelSpec, Plan, TensorSpec, make_plan

NETWORK = (
    ("conv1", "conv", "in", "a", 7200),
    ("dw", "depthwise", "a", "a", 2400),
    ("conv2", "conv", "a", "b", 24000),
    ("conv3", "conv", "b", "c", 32000),
    ("fc", "linear", "c", "out", 320),
)
"""(name, kind, input group, output group, dense multiply-accumulates)."""
SIZES = {"in": 3, "a": 24, "b": 10, "c": 32, "out": 10}
DENSE = dict(SIZES)


def plan_of(kept: dict[str, int], sizes: dict[str, int] | None = None) -> Plan:
    """The network with so many channels of these groups; the others are whole."""
    sizes = SIZES if sizes is None else sizes
    counts = sizes | kept
    layers = [
        LayerPlan(
            name=name,
            kind=kind,
            bits_w=8,
            bits_a=8,
            clip_w=1.0,
            clip_a=1.0,
            signed_a=False,
            macs=macs,
            weights=macs,
            kept_in=counts[source],
            kept_out=counts[sink],
            group_in=source,
            group_out=sink,
        )
        for name, kind, source, sink, macs in NETWORK
    ]
    groups = [
        ChannelGroup(
            id=name,
            size=size,
            kept=list(range(counts[name])),
            prunable=name in "abc",
            producers=[layer.name for layer in layers if layer.group_out == name],
            consumers=[layer.name for layer in layers if layer.group_in == name],
        )
        for name, size in sizes.items()
    ]
    return make_plan(
        model=ModelSpec(name="chain", arguments={"width": 24, "num_classes": 10}),
        inputs=[TensorSpec(name="input", dtype="float32", shape=["batch", 3, 8, 8])],
        outputs=[TensorSpec(name="logits", dtype="float32", shape=["batch", 10])],
        grid="int8",
        bits_weights=[8],
        bits_activations=[8],
        layers=layers,
        groups=groups,
    )


def found(plan: Plan, multiple: int) -> Padding | None:
    return padding_of(plan, replace(ONNXRUNTIME, channel_multiple=multiple))


def test_by_hand() -> None:
    """20 of 24 and 20 of 32 channels in multiples of 16: computed 24, of which there are no more, and 32. The 10
    channels of b and the images and classes are off the multiple, pruned or not."""
    kept = {"conv1": 6000, "dw": 2000, "conv2": 20000, "conv3": 20000, "fc": 200}
    padding = {"conv1": 1200, "dw": 400, "conv2": 4000, "conv3": 12000, "fc": 120}
    whole = found(plan_of({"a": 20, "c": 20}), 16)
    assert whole is not None
    assert whole.share == pytest.approx(sum(padding.values()) / (sum(kept.values()) + sum(padding.values())))
    assert whole.layers == ("conv3", "conv2", "conv1", "dw", "fc")


def test_kept_in_the_multiple_pads_nothing() -> None:
    assert found(plan_of({"a": 16, "c": 16}), 16) == Padding(multiple=16, share=0, layers=())


def test_nothing_is_said_where_nothing_was_pruned_or_any_number_is_as_good() -> None:
    assert found(plan_of({}), 16) is None
    assert found(plan_of({"a": 20}), 1) is None
    assert padding_of(plan_of({"a": 20}), None) is None


SIZE = st.integers(1, 40)
COUNTS = st.tuples(SIZE, SIZE, SIZE).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.tuples(*(st.integers(1, size) for size in sizes)))
)


@given(COUNTS, st.integers(2, 20))
def test_only_layers_off_the_multiple_are_padded(
    counts: tuple[tuple[int, int, int], tuple[int, int, int]], multiple: int
) -> None:
    sizes, kept = (dict(zip("abc", some, strict=True)) for some in counts)
    plan = plan_of(kept, DENSE | sizes)
    padding = found(plan, multiple)
    pruned = [name for name in "abc" if kept[name] < sizes[name]]
    if padding is None:
        assert not pruned
        return
    blocks = {name: min(sizes[name], sum(multiple for _ in range(0, kept[name], multiple))) for name in pruned}
    off = [name for name in pruned if kept[name] < blocks[name]]
    assert 0 <= padding.share < 1 and (padding.share == 0) == (not off)
    assert not any(aligned(plan.layer(name), plan, multiple) for name in padding.layers)
    for name in pruned:
        assert computed_channels(kept[name], sizes[name], multiple) == blocks[name]
