"""All rules, in the order in which findings are listed."""

from sbs_deploy.lint.finding import Rule
from sbs_deploy.lint.rules import biases, codes, formats, fusion, layers, scales, shapes

RULES: tuple[Rule, ...] = tuple(
    rule for kind in (codes, scales, biases, layers, formats, fusion, shapes) for rule in kind.RULES
)
