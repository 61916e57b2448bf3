"""Repair a model and check that its outputs stay equal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from sbs_deploy.graph.model_file import require_small_tensors, save_onnx
from sbs_deploy.graph.run import session_of
from sbs_deploy.graph.tensor import Array
from sbs_deploy.graph.view import Graph
from sbs_deploy.lint.edit import sweep
from sbs_deploy.lint.finding import Finding, RuleSet
from sbs_deploy.lint.rules import RULES
from sbs_deploy.lint.run import Linted, lint_model
from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError

ROUNDS = 8
"""Most rounds of repairs, as a repair may enable another."""
TOLERANCE = 1e-5
"""Largest difference relative to the largest output: repairs are exact, but sums may run in another order."""
SIZES = (32, 64, 224)
"""Sizes to try for axes without a size; the first axis is a batch of 2."""
REACHES = (1.0, 0.05, 20.0)
"""Standard deviations of random inputs: usual, of few codes, and saturating."""


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Outcome of `fix_model`."""

    repaired: list[Finding]
    """Findings that were repaired."""
    left: Linted
    """The repaired model, with the remaining findings."""


def fix_model(model: ModelProto, rules: Sequence[RuleSet], destination: Path, source: Path) -> Fixed:
    """Make all repairs, compare with the original, and write the result.

    Raises:
        SbsError: the destination is the source, or the comparison failed; nothing is written then.
    """
    if destination.exists() and destination.samefile(source):
        raise SbsError(f"--fix {destination} would overwrite the model itself; give another path")
    repaired, result = repair(model, rules)
    if repaired:
        check_same(model, result)
    save_onnx(result, destination)
    return Fixed(repaired=repaired, left=lint_model(result, rules))


def repair(model: ModelProto, rules: Sequence[RuleSet]) -> tuple[list[Finding], ModelProto]:
    """(repaired findings, repaired copy)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    repaired: list[Finding] = []
    graph = Graph(copy)
    for _ in range(ROUNDS):
        before = len(repaired)
        for rule in RULES:
            mechanical = [finding for finding in rule.findings(graph, rules) if finding.hit.fix is not None]
            for finding in mechanical:
                assert finding.hit.fix is not None
                finding.hit.fix()
            if mechanical:
                sweep(copy)
                graph = Graph(copy)
            repaired += mechanical
        if len(repaired) == before:
            break
    return repaired, copy


def check_same(original: ModelProto, repaired: ModelProto) -> None:
    """Refuse a repaired model that is invalid or has other outputs than the original.

    Both models run node by node on random inputs, without optimizations.

    Raises:
        SbsError: the outputs differ, or one of the models does not run.
    """
    _require_small(original, SIZES[0])
    before = session_of(original, "none")
    try:
        onnx.checker.check_model(repaired, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())
        raise SbsError(f"--fix would write an invalid model ({reason}); repair it by hand, and report it") from error
    sessions = (before, session_of(repaired, "none"))
    compared = 0
    for size in SIZES:
        _require_small(original, size)
        for reach in REACHES:
            feed = _inputs(original, size, np.random.default_rng(size), reach)
            expected, found = (_run(session, feed) for session in sessions)
            if expected is None:
                break
            if found is None or not all(map(_close, expected, found)):
                raise SbsError("--fix: the repaired model computes something else; repair it by hand, and report it")
            compared += 1
        if compared:
            return
    raise SbsError(
        f"--fix: the model does not run on inputs of size {SIZES}, so no repair can be checked; fix its axes"
    )


def _run(session: Any, feed: Mapping[str, Array]) -> list[Array] | None:
    """Outputs of a session; None if its operators refuse inputs of this shape."""
    try:
        return [np.asarray(output) for output in session.run(None, feed)]
    except Exception:  # noqa: BLE001  # the interpreter's errors have no common base
        return None


def _dims(value: ValueInfoProto, size: int) -> list[int]:
    """Sizes of an input's axes: fixed sizes, a batch of 2, and `size` for other open axes."""
    shape = value.type.tensor_type.shape
    return [d.dim_value or (2 if i == 0 else size) for i, d in enumerate(shape.dim)]


def _require_small(model: ModelProto, size: int) -> None:
    """SbsError if inputs of this size lead to tensors beyond the bounds of memory."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in Graph(copy).inputs:
        for dim, number in zip(value.type.tensor_type.shape.dim, _dims(value, size), strict=True):
            dim.dim_value = number
    for value in (*copy.graph.value_info, *copy.graph.output):
        value.type.tensor_type.ClearField("shape")  # the shapes may no longer fit
    remedy = "make the input's axes smaller, or leave their sizes open, so that a repair can be checked"
    require_small_tensors(copy, bounds.TENSOR_BYTES, "--fix", remedy)


def _inputs(model: ModelProto, size: int, rng: np.random.Generator, reach: float) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for value in Graph(model).inputs:
        tensor = value.type.tensor_type
        dims = _dims(value, size)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.integer):
            feed[value.name] = rng.integers(0, 2 if dtype.itemsize > 1 else 128, dims).astype(dtype)
        else:
            feed[value.name] = (reach * rng.standard_normal(dims)).astype(dtype)
    return feed


def _close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return np.array_equal(expected, found)
    limit = TOLERANCE * float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return np.allclose(found, expected, rtol=0.0, atol=limit, equal_nan=True)
