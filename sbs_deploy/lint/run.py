"""Lint a file: read it, choose the rules, list what they find."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from sbs_deploy.export.qdq import DIALECT_KEY
from sbs_deploy.graph.model_file import read_model
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.finding import Finding, RuleSet
from sbs_deploy.lint.rules import RULES
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import RunDir

RULE_SETS: tuple[RuleSet, ...] = ("trt", "ort")
_DAMAGED = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, DecodeError, EncodeError),
    *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
)


@dataclass(frozen=True, kw_only=True)
class Linted:
    """A model and its findings."""

    model: ModelProto
    rules: tuple[RuleSet, ...]
    """Rule sets that were used."""
    findings: list[Finding]
    """Errors first; within a severity, rule by rule in graph order."""

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.rule.severity == "error" for finding in self.findings)


def lint_file(path: Path, rules: Literal["auto"] | RuleSet = "auto") -> Linted:
    """Findings of an ONNX file; `auto` takes the rules of the dialect that it was exported in, all for any other file.

    Raises:
        SbsError: the file is missing, damaged, not ONNX, or lacks its external data.
    """
    model = load_model(path)
    return lint_model(model, rule_sets(path, model) if rules == "auto" else (rules,))


def load_model(path: Path) -> ModelProto:
    """Read any valid ONNX model, with external data loaded and local functions inlined.

    Raises:
        SbsError: the file is missing, damaged, not ONNX, or lacks its external data.
    """
    if not path.is_file():
        raise SbsError(f"{path} is missing; give the path of an ONNX file")
    try:
        model = read_model(path)
        onnx.checker.check_model(str(path))
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _look_through(model)
    except SbsError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).strip().partition("\n")[0].split())
        raise SbsError(f"{path} is no whole and valid ONNX model ({reason}); export it again, at opset 21") from error
    return model


def _look_through(model: ModelProto) -> None:
    """Checks that onnx's checker lacks: no operators, unknown types, constants with wrong numbers of bytes."""
    graph = Graph(model)
    if not graph.nodes:
        raise ValueError("it has no operators")
    for code_type in set(graph.types.values()):
        TensorProto.DataType.Name(code_type)
    for name in graph.initializers:
        graph.constant(name)


def rule_sets(path: Path, model: ModelProto) -> tuple[RuleSet, ...]:
    """Rule sets of a file: the file's dialect if `sbs-deploy export` made the file, else all."""
    written = next((entry.value for entry in model.metadata_props if entry.key == DIALECT_KEY), None)
    run = RunDir(path.absolute().parent.parent)
    of_run = {run.model_trt: "trt", run.model_ort: "ort"}.get(path.absolute()) if run.plan.is_file() else None
    return tuple(name for name in RULE_SETS if name in (written, of_run)) or RULE_SETS


def lint_model(model: ModelProto, rules: Sequence[RuleSet]) -> Linted:
    """Findings of the rules of these sets."""
    graph = Graph(model)
    found = [finding for rule in RULES for finding in rule.findings(graph, rules)]
    return Linted(model=model, rules=tuple(rules), findings=sorted(found, key=lambda finding: finding.rule.severity))
