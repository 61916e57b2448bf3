"""plan.json: what is read is what was written, and everything inconsistent is refused with its field named."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sbs_train.contract import plan as contract
from sbs_train.contract.errors import SbsError
from sbs_train.contract.grid import range_quantizer
from sbs_train.contract.plan import (
    AddPlan,
    ChannelGroup,
    InputSpec,
    LayerPlan,
    ModelSpec,
    Plan,
    TensorSpec,
    load_plan,
    make_plan,
    save_plan,
)
from tests.sbs_deploy.graphs import small_plan as exported_plan

Edit = Callable[[dict[str, Any]], None]


def layer(name: str, group_in: str, group_out: str, kept_in: int, kept_out: int, **changes: Any) -> LayerPlan:
    fields: dict[str, Any] = {
        "kind": "conv",
        "bits_w": 8,
        "bits_a": 8,
        "clip_w": 0.5,
        "clip_a": 2.0,
        "signed_a": False,
        "macs": 10_000,
        "weights": 144,
    }
    groups = {"group_in": group_in, "group_out": group_out, "kept_in": kept_in, "kept_out": kept_out}
    return LayerPlan(name=name, **{**fields, **groups, **changes})


def small_plan(kept: list[int] | None = None, bits_w: int = 2, bits_a: int = 4) -> Plan:
    """Three layers: image -> stem -> middle (inputs pruned to `kept` of 4 channels) -> fc."""
    kept = [0, 2] if kept is None else kept
    groups = [
        ChannelGroup(id="image", size=3, kept=[0, 1, 2], prunable=False, producers=[], consumers=["stem"]),
        ChannelGroup(id="inner", size=4, kept=kept, prunable=True, producers=["stem"], consumers=["middle"]),
        ChannelGroup(id="wide", size=4, kept=[0, 1, 2, 3], prunable=False, producers=["middle"], consumers=["fc"]),
        ChannelGroup(id="logits", size=2, kept=[0, 1], prunable=False, producers=["fc"], consumers=[]),
    ]
    layers = [
        layer("stem", "image", "inner", 3, len(kept), signed_a=True),
        layer("middle", "inner", "wide", len(kept), 4, bits_w=bits_w, bits_a=bits_a),
        layer("fc", "wide", "logits", 4, 2, kind="linear", macs=8, weights=8),
    ]
    return make_plan(
        model=ModelSpec(name="resnet20", arguments={"width": 4, "num_classes": 2}),
        inputs=[InputSpec(channels=3, height=8, width=8, mean=[0.5] * 3, std=[0.25] * 3).tensor("x")],
        outputs=[TensorSpec(name="output", dtype="float32", shape=["batch", 2])],
        grid="int8",
        bits_weights=[2, 4, 8],
        bits_activations=[2, 4, 8],
        layers=layers,
        groups=groups,
    )


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))  # NaN and Infinity as Python writes them: a damaged file may hold them
    return path


def test_cost_by_hand() -> None:
    plan = small_plan()
    # stem: half its filters, 8 x 8 bits; middle: half its inputs, 2 x 4 bits; fc: whole, 8 x 8 bits.
    assert plan.cost.bops_fp32 == (10_000 + 10_000 + 8) * 1024
    assert plan.cost.bops == 5_000 * 64 + 5_000 * 8 + 8 * 64
    assert plan.cost.reduction == pytest.approx(20_008 * 1024 / 360_512)
    assert plan.cost.shares["middle"] == pytest.approx(40_000 / 360_512)
    assert sum(plan.cost.shares.values()) == pytest.approx(1)


def test_depthwise_cost_falls_once() -> None:
    group = ChannelGroup(id="g", size=4, kept=[0], prunable=True, producers=["d"], consumers=["d"])
    depthwise = layer("d", "g", "g", 1, 1, kind="depthwise")
    plan = small_plan()
    plan = make_plan(
        model=plan.model,
        inputs=plan.inputs,
        outputs=plan.outputs,
        grid="int8",
        bits_weights=[2, 4, 8],
        bits_activations=[2, 4, 8],
        layers=[depthwise],
        groups=[group],
    )
    assert plan.cost.bops == plan.bops(depthwise) == 10_000 / 4 * 64


@given(
    st.sets(st.integers(0, 3), min_size=1).map(sorted),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([2, 4, 8]),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, kept: list[int], bits_w: int, bits_a: int) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = small_plan(kept, bits_w, bits_a)
    save_plan(plan, path)
    assert load_plan(path) == plan


def test_lookups() -> None:
    plan = small_plan()
    assert plan.layer("fc").kind == "linear"
    assert plan.group("inner").kept == [0, 2]
    assert plan.kept_fraction("inner") == 0.5
    assert plan.level_w(plan.layer("middle")).steps == 3
    assert plan.level_a(plan.layer("middle")).steps == 15
    assert plan.level_a(plan.layer("stem")).steps == 126, "a signed input"


def test_the_first_and_last_layer_have_8_bits_whatever_the_candidates() -> None:
    assert contract.grid_bits([2, 4]) == (2, 4)
    assert contract.grid_bits([2, 4], fixed=True) == (8,)
    assert contract.grid_bits([2, 4, 8], fixed=True) == (2, 4, 8)
    assert contract.grid_bits([32]) == ()


def set_layer(**changes: Any) -> Edit:
    return lambda value: value["layers"][1].update(changes)


def set_group(**changes: Any) -> Edit:
    return lambda value: value["groups"][1].update(changes)


def set_cost(**changes: Any) -> Edit:
    return lambda value: value["cost"].update(changes)


def drop(*path: Any) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        inner: Any = value
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]

    return edit


REFUSED: list[tuple[str, Edit, str]] = [
    *((f"clip_w {v}", set_layer(clip_w=v), "layers.1.clip_w") for v in (0, -1.0, float("nan"), float("inf"), "x")),
    *((f"clip_a {v}", set_layer(clip_a=v), "layers.1.clip_a") for v in (0, -1.0, float("nan"), float("-inf"))),
    ("clip_w null", set_layer(clip_w=None), "clip_w of layer middle must be null"),
    ("clip of a float layer", set_layer(bits_a=32), "clip_a of layer middle must be null"),
    ("bits_w 3", set_layer(bits_w=3), "bits_w of middle is 3, not among the candidates"),
    ("bits_a 16", set_layer(bits_a=16), "bits_a of middle is 16, not among the candidates"),
    ("kind", set_layer(kind="pool"), "layers.1.kind"),
    ("macs 0", set_layer(macs=0), "layers.1.macs"),
    ("no group", set_layer(group_in="nowhere"), "group_in of middle names the unknown group nowhere"),
    ("null group", set_layer(group_out=None), "layers.1.group_out"),
    ("group key missing", drop("layers", 1, "group_in"), "layers.1.group_in"),
    ("kept_in", set_layer(kept_in=3), "kept_in of middle is 3, but group inner keeps 2"),
    ("kept_out", set_layer(kept_out=3), "kept_out of middle is 3, but group wide keeps 4"),
    ("kept too large", set_group(kept=[0, 4]), "kept of group inner must lie in 0..3"),
    ("kept negative", set_group(kept=[-1, 0]), "kept of group inner must lie in 0..3"),
    ("kept repeated", set_group(kept=[2, 2]), "kept of group inner must be ascending and without repeats"),
    ("kept unsorted", set_group(kept=[2, 0]), "kept of group inner must be ascending and without repeats"),
    ("kept empty", set_group(kept=[]), "groups.1.kept"),
    ("kept of a fixed group", set_group(prunable=False), "kept of group inner drops channels"),
    ("count of a group", set_group(kept=[0, 1, 2]), "is 2, but group inner keeps 3"),
    ("group id twice", set_group(id="image"), "groups: an id is repeated"),
    ("producer", set_group(producers=["stem", "ghost"]), "inner names the unknown layer ghost"),
    ("name twice", set_layer(name="fc"), "layers: a name is repeated"),
    ("no layers", lambda value: value.update(layers=[]), "layers"),
    ("cost.bops", set_cost(bops=1.0), "cost.bops does not match the layers"),
    ("cost.bops_fp32", set_cost(bops_fp32=1.0), "cost.bops_fp32 does not match the layers"),
    ("cost.reduction", set_cost(reduction=60.0), "cost.reduction does not match the layers"),
    ("a share missing", drop("cost", "shares", "fc"), "cost.shares must name every layer once"),
    (
        "a share wrong",
        lambda value: value["cost"]["shares"].update(fc=float("nan")),
        "cost.shares",
    ),
    ("bits of a layer that cost", set_layer(bits_w=4), "cost.bops does not match the layers"),
    ("unknown key", lambda value: value.update(colour="red"), "colour"),
    ("unknown key of a layer", set_layer(scale=1.0), "layers.1.scale"),
    ("unknown key of the input", lambda value: value["inputs"][0].update(dpi=3), "inputs.0.dpi"),
    ("std 0", lambda value: value["inputs"][0].update(std=[0.0, 1.0, 1.0]), "inputs.0.std.0"),
    ("grid", lambda value: value.update(grid="float"), "grid"),
    ("newer", lambda value: value.update(schema_version=3), "schema_version 3 is newer than 2; install a newer sbs"),
    ("older", lambda value: value.update(schema_version=0), "schema_version"),
    ("no version", drop("schema_version"), "schema_version"),
]


@pytest.mark.parametrize(("edit", "named"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_inconsistent_values_are_refused_by_name(edit: Edit, named: str, tmp_path: Path) -> None:
    value = copy.deepcopy(small_plan().model_dump())
    edit(value)
    path = write(tmp_path / "plan.json", value)
    with pytest.raises(SbsError) as caught:
        load_plan(path)
    message = str(caught.value)
    assert named in message
    assert message.startswith(str(path))
    assert "\n" not in message


@given(st.integers(0, 3000))
def test_a_truncated_file_is_one_line(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_plan(small_plan(), path)
    whole = path.read_text()
    path.write_text(whole[: min(length, len(whole) - 2)])
    with pytest.raises(SbsError, match="is damaged") as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, [], "plan", {}])
def test_other_json_is_not_a_plan(value: Any, tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="make it again with `sbs-train --resume`"):
        load_plan(write(tmp_path / "plan.json", value))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SbsError, match="cannot read"):
        load_plan(tmp_path / "plan.json")


def test_a_plan_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        small_plan().layers[0].bits_w = 4


def test_deployable_bops_counts_eight_bits_for_every_quantized_layer() -> None:
    image, half = 64 * 9, 0.5
    by_hand = 3 * 16 * image * 64 + 16 * 32 * image * half * 64 + 32 * 16 * image * half * 64 + 16 * 10 * 32 * 32
    assert exported_plan().deployable_bops() == pytest.approx(by_hand)


def with_outputs(*outputs: dict[str, Any]) -> Plan:
    return Plan(**{**small_plan().model_dump(), "ranges": list(outputs)})


def test_the_range_of_a_sum_has_both_ends_or_none() -> None:
    add: dict[str, Any] = {"clip_lhs": 1.0, "clip_rhs": 2.0, "signed_lhs": True, "signed_rhs": False}
    old, new = AddPlan(**add), AddPlan(**add, low=-1.0, high=4.1)
    plan = small_plan()
    assert plan.sum_quantizer(old) is None
    assert plan.sum_quantizer(new) == range_quantizer(-1.0, 4.1)
    for wrong in ({"low": -1.0}, {"high": 1.0}, {"low": 0.0, "high": 0.0}, {"low": 0.5, "high": 1.0}):
        with pytest.raises(ValidationError):
            AddPlan(**add, **wrong)


def test_outputs_are_ranges_of_quantized_layers(tmp_path: Path) -> None:
    one = {"name": "stem", "low": -1.0, "high": 4.1}
    plan = with_outputs(one, {**one, "name": "fc"})
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    found = plan.output_quantizers()["stem"]
    assert (found.step, found.code_min, found.code_max) == (pytest.approx(0.02), -50, 205)
    old = {key: value for key, value in plan.model_dump().items() if key != "ranges"}
    assert Plan(**old).ranges == []
    for wrong, words in (
        ([{**one, "low": 0.5}], "low"),
        ([{**one, "low": 0.0, "high": 0.0}], "empty"),
        ([one, one], "each once"),
        ([{**one, "name": "fc"}, one], "their order"),
        ([{**one, "name": "unknown"}], "quantized layers"),
    ):
        with pytest.raises(ValidationError, match=words):
            with_outputs(*wrong)


def first_version() -> dict[str, Any]:
    """`small_plan` as version 1 wrote it."""
    value = with_outputs({"name": "stem", "low": -1.0, "high": 4.1}).model_dump()
    ranges = value.pop("ranges")
    del value["inputs"]
    return value | {
        "schema_version": 1,
        "model": {"name": "resnet20", "width": 4, "num_classes": 2},
        "input": {"channels": 3, "height": 8, "width": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        "outputs": ranges,
    }


def test_plans_of_version_1_are_read(tmp_path: Path) -> None:
    plan, now = load_plan(write(tmp_path / "plan.json", first_version())), small_plan()
    assert plan.inputs == [now.inputs[0].model_copy(update={"name": "input"})]
    assert plan.outputs == [TensorSpec(name="logits", dtype="float32", shape=["batch", 2])]
    assert plan.model == now.model and [one.name for one in plan.ranges] == ["stem"]
    assert plan.layers == now.layers and plan.cost == now.cost
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (drop("input"), "input"),
        (lambda value: value["input"].update(std=[0.0, 1.0, 1.0]), "input.std.0"),
        (lambda value: value["model"].update(depth=3), "model.depth"),
        (lambda value: value.update(outputs=[{"name": "fc"}]), "ranges.0.low"),
        (lambda value: value.update(outputs=3), "ranges"),
        (lambda value: value.update(colour="red"), "colour"),
    ],
)
def test_damaged_plans_of_version_1_are_refused(edit: Edit, named: str, tmp_path: Path) -> None:
    value = first_version()
    edit(value)
    with pytest.raises(SbsError, match=named):
        load_plan(write(tmp_path / "plan.json", value))


def test_names_of_inputs_and_outputs_are_different() -> None:
    plan = small_plan()
    with pytest.raises(ValidationError, match="a name is repeated"):
        Plan(**{**plan.model_dump(), "outputs": plan.inputs})
    with pytest.raises(ValidationError, match="mean and std"):
        TensorSpec(name="x", dtype="float32", shape=["batch", 3], mean=[0.5])
    with pytest.raises(SbsError, match="without a size"):
        _ = TensorSpec(name="x", dtype="float32", shape=["batch", 3, "height"]).sample
