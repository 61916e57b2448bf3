"""Rules and what they find, as data."""

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
    """Name of the node, or the operator and its output where it has none."""
    detail: str = ""
    """What is particular about this place."""
    fix: Callable[[], None] | None = None
    """Changes the graph so that the rule no longer applies and the network computes the same; None if nothing can.
    Fixes of one rule, found in one view of a graph, can all be made."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Something that backends of a dialect do not take, or take slowly."""

    id: str
    dialects: tuple[RuleSet, ...]
    severity: Severity
    """error: refused, or computed wrongly. warning: slow."""
    effect: str
    """What happens; the backend's own words in backquotes."""
    remedy: str
    find: Callable[[Graph], Iterator[Hit]]
    exclusive: bool = False
    """Whether a repair would be against the rules of another dialect: it is made for this dialect alone."""

    def findings(self, graph: Graph, rules: Sequence[RuleSet]) -> Iterator["Finding"]:
        """What it finds, for those who keep these rule sets."""
        if not set(self.dialects) & set(rules):
            return
        for hit in self.find(graph):
            keep = not self.exclusive or set(rules) <= set(self.dialects)
            yield Finding(rule=self, hit=hit if keep else replace(hit, fix=None))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule and where it applies."""

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
