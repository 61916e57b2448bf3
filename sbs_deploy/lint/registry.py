"""All rules, in the order in which findings are listed."""

from sbs_deploy.lint.finding import Rule
from sbs_deploy.lint.rules import biases, codes, formats, fusion, layers, scales, shapes

RULES: tuple[Rule, ...] = (
    *codes.RULES,
    *scales.RULES,
    *biases.RULES,
    *layers.RULES,
    *formats.RULES,
    *fusion.RULES,
    *shapes.RULES,
)
