"""Rules and findings as records."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sbs_deploy.graph.view import Graph

RuleSet = Literal["trt", "ort"]
Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One place in a graph where a rule applies."""

    node: str
    """Name of the node; without a name the operator and its output."""
    detail: str = ""
    """Details of this place."""
    fix: Callable[[], None] | None = None
    """Changes the graph so that the rule no longer applies and outputs stay equal; None if impossible. All fixes of one
    rule, found in one view of a graph, can be applied together."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A pattern that backends of a dialect refuse or run slowly."""

    id: str
    dialects: tuple[RuleSet, ...]
    severity: Severity
    """error: refused, or wrong results. warning: slow."""
    effect: str
    """What happens; quotes of the backend in backquotes."""
    remedy: str
    find: Callable[[Graph], Iterator[Hit]]
    exclusive: bool = False
    """Whether the repair breaks rules of another dialect, so that it is made for this dialect only."""

    def findings(self, graph: Graph, rules: Sequence[RuleSet]) -> Iterator["Finding"]:
        """Findings of this rule if it belongs to one of the rule sets."""
        if not set(self.dialects) & set(rules):
            return
        for hit in self.find(graph):
            keep = not self.exclusive or set(rules) <= set(self.dialects)
            yield Finding(rule=self, hit=hit if keep else replace(hit, fix=None))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule and a place where it applies."""

    rule: Rule
    hit: Hit

    def as_json(self) -> dict[str, Any]:
        """An element of `findings` in the document of `sbs-deploy lint --json`."""
        return {
            "rule": self.rule.id,
            "targets": list(self.rule.dialects),
            "severity": self.rule.severity,
            "node": self.hit.node,
            "effect": f"{self.rule.effect} ({self.hit.detail})" if self.hit.detail else self.rule.effect,
            "remedy": self.rule.remedy,
            "fixable": self.hit.fix is not None,
        }
