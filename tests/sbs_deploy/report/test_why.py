from typing import Any

from sbs_deploy.report.history import search_history
from sbs_deploy.report.why import Decision, Gate, Why, explain
from tests.sbs_deploy.graphs import small_plan
from tests.sbs_deploy.report.histories import search_rows


def why_of(rows: list[dict[str, Any]]) -> Why:
    plan = small_plan()
    history = search_history(plan, {}, {"search": {"history": rows}})
    assert history is not None
    return explain(plan, history)


def test_every_decision_names_the_gates_beside_it() -> None:
    why = why_of(search_rows())
    conv1, conv2, conv3, fc = why.layers
    assert [layer.name for layer in why.layers] == ["conv1", "conv2", "conv3", "fc"]
    # conv2 has 2-bit weights: its first gate is the next to open, nothing is left to close.
    assert conv2.weights == Decision(
        bits=2, gate_bits=2, opens=Gate(bits=4, margin=-0.002, close=False), closes=None, since=2
    )
    # 4-bit activations lie between the two gates.
    assert conv2.inputs == Decision(
        bits=4,
        gate_bits=4,
        opens=Gate(bits=8, margin=-0.04, close=False),
        closes=Gate(bits=2, margin=0.05, close=False),
        since=3,
    )
    # 8-bit weights: the second gate is the next to close; of the five margins shown it is the one nearest to 0.
    assert conv3.weights == Decision(
        bits=8, gate_bits=8, opens=None, closes=Gate(bits=4, margin=0.0001, close=True), since=1
    )
    for fixed in (conv1.weights, fc.weights, fc.inputs):
        assert fixed.gate_bits is fixed.opens is fixed.closes is fixed.since is None
    assert (conv1.weights.bits, fc.inputs.bits) == (8, 32)
    assert sum(layer.share for layer in why.layers) == 1


def test_groups_name_the_block_that_goes_next() -> None:
    (group,) = why_of(search_rows()).groups
    assert (group.name, group.consumers, group.kept, group.size, group.since) == ("b", ("conv3",), 16, 32, 3)
    assert group.closes == Gate(bits=None, margin=0.0007, close=True)


def test_a_plan_that_was_moved_to_the_target_says_where_its_gates_stood() -> None:
    rows = search_rows()
    rows[2]["bits_w"]["conv2"], rows[2]["kept"]["b"] = 4, 20
    why = why_of(rows)
    decision = why.layers[1].weights
    assert (decision.bits, decision.gate_bits, decision.since) == (2, 4, None)
    assert decision.opens == Gate(bits=4, margin=-0.002, close=False), "seen from the bits it got"
    assert (why.groups[0].kept, why.groups[0].gate_kept) == (16, 20)


def test_a_history_without_margins_still_names_the_gates() -> None:
    rows = search_rows()
    del rows[2]["margins"]
    why = why_of(rows)
    assert why.layers[1].inputs.opens == Gate(bits=8, margin=None, close=False)
    assert why.layers[1].inputs.closes == Gate(bits=2, margin=None, close=False)
    assert why.groups[0].closes == Gate(bits=None, margin=None, close=False)


def test_a_group_whose_blocks_all_went_below_has_no_margin() -> None:
    rows = search_rows()
    rows[2]["margins"]["p:b"] = []
    assert why_of(rows).groups[0].closes.margin is None
