"""Every rule, on a graph that has what it looks for and on its neighbour that has not."""

import onnx
import pytest

from sbs_deploy.lint.finding import Finding
from sbs_deploy.lint.rules import RULES
from sbs_deploy.lint.run import lint_model
from tests.sbs_deploy.lint.cases import cases

CASES = cases()
TARGETS = {"trt": ("trt",), "ort": ("ort",), "both": ("trt", "ort")}


def findings(model: onnx.ModelProto, rule: str, target: str) -> list[Finding]:
    found = lint_model(model, TARGETS[target]).findings
    return [f for f in found if f.rule.id == rule and f.rule.dialects == TARGETS[target]]


@pytest.mark.parametrize(
    ("rule", "target", "bad", "good"),
    CASES,
    ids=[f"{target}-{rule}-{i}" for i, (rule, target, _, _) in enumerate(CASES)],
)
def test_rule(rule: str, target: str, bad: onnx.ModelProto, good: onnx.ModelProto) -> None:
    (found, *_) = findings(bad, rule, target)
    names = {node.name for node in bad.graph.node} | {value.name for value in bad.graph.input}
    assert found.hit.node in names
    assert not findings(good, rule, target)


def test_every_rule_has_a_case() -> None:
    assert {(r.id, r.dialects) for r in RULES} == {(rule, TARGETS[target]) for rule, target, _, _ in CASES}
    assert len({(rule.id, rule.dialects) for rule in RULES}) == len(RULES)
