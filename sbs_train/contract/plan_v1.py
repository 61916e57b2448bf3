"""Version 1 of plan.json, of before networks had more than one image for input and logits for output.

The weights of such a run may be the work of many hours, so its plan is read as one of version 2.
"""

from pathlib import Path
from typing import Any

from sbs_train.contract.documents import checked
from sbs_train.contract.schema import Count, InputSpec, Strict

_REPLACED = ("schema_version", "model", "input", "outputs")


class _Model(Strict):
    name: str
    width: Count
    num_classes: Count


class _Replaced(Strict):
    model: _Model
    input: InputSpec


def upgraded(path: Path, value: dict[str, Any], remedy: str) -> dict[str, Any]:
    """A document of version 1 as one of version 2; SbsError names the first wrong field of those that differ."""
    old = checked(path, {name: value[name] for name in ("model", "input") if name in value}, _Replaced, remedy)
    classes = old.model.num_classes
    model = {"name": old.model.name, "arguments": {"width": old.model.width, "num_classes": classes}}
    return {
        "schema_version": 2,
        "model": model,
        "inputs": [old.input.tensor("input").model_dump()],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", classes]}],
        "ranges": value.get("outputs", []),
        **{name: part for name, part in value.items() if name not in _REPLACED},
    }
