"""Results of validation as labels and values."""

from typing import Any

from sbs_deploy.build import graph_words
from sbs_train.contract.validation import CheckedEngine, Validation


def validation_rows(validation: Validation) -> list[tuple[str, str]]:
    """(What was checked, what came of it), without what does not apply; the verdict itself has no row."""
    rest = {"passed", "float_qdq", "integer", "identity", "failures", "engines", "graphs"}
    numbers = validation.model_dump(exclude=rest, exclude_none=True)
    rows = [(key.replace("_", " "), _word(value)) for key, value in numbers.items()]
    if (identity := validation.identity) is not None:
        for output, limit in identity.limit.items():
            errors = ", ".join(f"{name} {_word(found.get(output))}" for name, found in identity.error.items())
            said = f"{errors} of the float network's {output} (limit {_word(limit)})"
            rows.append(("error without quantizers", said))
        rows += [
            ("quantizers equal", _word(identity.quantizers_equal)),
        ]
    rows += [("failure", found) for found in validation.failures]
    rows += [(f"graph {name}", graph_words(golden)) for name, golden in validation.graphs.items()]
    return rows + [(f"engine {one.engine}", _engine(one)) for one in validation.engines]


def _word(value: Any) -> str:
    if value is None:
        return "not a number"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _engine(found: CheckedEngine) -> str:
    said = "not checked" if found.passed is None else "passed" if found.passed else "failed"
    said += f" on {found.device}" if found.device else ""
    said += f", first diverging layer {found.first_divergence}" if found.first_divergence else ""
    return said + (f" ({found.note})" if found.note else "")
