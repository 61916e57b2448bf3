import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.backends.spec import ONNXRUNTIME
from sbs_deploy.measure.ledger.alignment import Alignment, aligned, alignment_of, fewest
from sbs_train.contract.cost import computed_channels
from sbs_train.contract.plan import ChannelGroup, InputSpec, LayerPlan, ModelSpec, Plan, make_plan

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
        model=ModelSpec(name="chain", width=24, num_classes=10),
        input=InputSpec(channels=3, height=8, width=8, mean=[0.5] * 3, std=[0.25] * 3),
        grid="int8",
        bits_weights=[8],
        bits_activations=[8],
        layers=layers,
        groups=groups,
    )


def found(plan: Plan, multiple: int, times: list[tuple[tuple[str, ...], float]] | None = None) -> Alignment:
    result = alignment_of(plan, ONNXRUNTIME, multiple, times)
    assert result is not None
    return result


def test_by_hand() -> None:
    """20 of 24 and 20 of 32 channels in multiples of 16: computed 24, of which there are no more, and 32; 17 of each
    cost as much. The 10 channels of b and the images and classes are off the multiple, pruned or not."""
    alignment = found(plan_of({"a": 20, "c": 20}), 16)
    kept = {"conv1": 6000, "dw": 2000, "conv2": 20000, "conv3": 20000, "fc": 200}
    padding = {"conv1": 1200, "dw": 400, "conv2": 4000, "conv3": 12000, "fc": 120}
    at_17 = {"conv1": 5100, "dw": 1700, "conv2": 17000, "conv3": 17000, "fc": 170}
    assert alignment.padding == pytest.approx(sum(padding.values()) / (sum(kept.values()) + sum(padding.values())))
    assert alignment.padded == ("conv3", "conv2", "conv1", "dw", "fc")
    assert alignment.avoided == pytest.approx(1 - sum(at_17.values()) / sum(kept.values()))
    assert (alignment.channels, alignment.padding_ms) == (6, None)


def test_milliseconds_go_with_the_padding_of_what_runs_as_one() -> None:
    """conv3 pads 12000 of 32000; conv1 and the depthwise layer 1600 of 9600 together."""
    times = [(("conv3",), 2.0), (("conv1", "dw"), 1.0)]
    assert found(plan_of({"a": 20, "c": 20}), 16, times).padding_ms == pytest.approx(2 * 12 / 32 + 16 / 96)


def test_kept_in_the_multiple_pays_nothing() -> None:
    alignment = found(plan_of({"a": 16, "c": 16}), 16, [(("conv3",), 2.0)])
    assert (alignment.padding, alignment.padding_ms, alignment.padded, alignment.channels) == (0, 0, (), 30)


def test_one_channel_above_a_multiple_avoids_nothing() -> None:
    alignment = found(plan_of({"c": 17}), 16)
    assert alignment.padding > 0 and (alignment.avoided, alignment.channels) == (0, 0)


def test_the_layers_with_most_padding_are_named() -> None:
    assert found(plan_of({"c": 20}), 16).padded == ("conv3", "fc")


def test_nothing_is_said_where_nothing_was_pruned_or_any_number_is_as_good() -> None:
    assert alignment_of(plan_of({}), ONNXRUNTIME, 16) is None
    assert alignment_of(plan_of({"a": 20}), ONNXRUNTIME, 1) is None
    assert alignment_of(plan_of({"a": 20}), None, 16) is None


SIZE = st.integers(1, 40)
COUNTS = st.tuples(SIZE, SIZE, SIZE).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.tuples(*(st.integers(1, size) for size in sizes)))
)


@given(COUNTS, st.integers(2, 20))
def test_no_search_keeps_fewer_at_the_same_cost(
    counts: tuple[tuple[int, int, int], tuple[int, int, int]], multiple: int
) -> None:
    """Every count of every group is tried, by blocks of channels as a kernel computes them."""
    sizes, kept = (dict(zip("abc", some, strict=True)) for some in counts)
    plan = plan_of(kept, DENSE | sizes)
    alignment = alignment_of(plan, ONNXRUNTIME, multiple)
    pruned = [name for name in "abc" if kept[name] < sizes[name]]
    if alignment is None:
        assert not pruned
        return

    def blocks(count: int, size: int) -> int:
        return min(size, sum(multiple for _ in range(0, count, multiple)))

    saved = 0
    for name in pruned:
        same = [n for n in range(1, sizes[name] + 1) if blocks(n, sizes[name]) == blocks(kept[name], sizes[name])]
        assert computed_channels(kept[name], sizes[name], multiple) == max(same)
        assert fewest(kept[name], multiple) == min(same)
        saved += kept[name] - min(same)
    assert alignment.channels == saved
    assert 0 <= alignment.padding < 1 and 0 <= alignment.avoided < 1
    assert math.isclose(alignment.avoided, 0, abs_tol=1e-12) == (saved == 0)
    off = [name for name in pruned if kept[name] % multiple and kept[name] < blocks(kept[name], sizes[name])]
    assert (alignment.padding == 0) == (not off)
    if all(kept[name] % multiple == 0 for name in pruned):
        assert alignment.padding == 0
    assert not any(aligned(plan.layer(name), plan, multiple) for name in alignment.padded)
