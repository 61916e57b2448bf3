"""validation.json in words."""

from collections.abc import Mapping
from typing import Any


def validation_rows(validation: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(What was checked, what came of it), without what does not apply; the verdict and the details have no row."""
    identity = validation.get("identity")
    rows = [
        (key.replace("_", " "), _word(value))
        for key, value in validation.items()
        if key != "passed" and value is not None and not isinstance(value, (Mapping, list))
    ]
    if identity is not None:
        errors = ", ".join(f"{name} {_word(error)}" for name, error in identity["error"].items())
        rows += [
            ("error without quantizers", f"{errors} of the float network's logits (limit {_word(identity['limit'])})"),
            ("quantizers equal", _word(identity["quantizers_equal"])),
        ]
    rows += [("failure", found) for found in validation.get("failures", ())]
    return rows + [(f"engine {one['engine']}", _engine(one)) for one in validation.get("engines", ())]


def _word(value: Any) -> str:
    if value is None:
        return "not a number"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _engine(found: Mapping[str, Any]) -> str:
    """Of a GPU: passed, failed or, where `passed` is null, not checked; with what is known of it."""
    passed, first = found["passed"], found.get("first_divergence")
    said = "not checked" if passed is None else "passed" if passed else "failed"
    said += f" on {found['device']}" if found.get("device") else ""
    said += f", first diverging layer {first}" if first else ""
    return said + (f" ({found['note']})" if found.get("note") else "")
