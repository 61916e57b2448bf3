"""Compute graphs with ONNX Runtime's CPU kernels: the reference for engines and for other graphs.

ONNX Runtime as a backend, with engines that are shipped and timed, is in backends/onnxruntime.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx

from sbs_deploy.graph.arrays import (
    Array,
    Arrays,
    Named,
    checked,
    growing,
    in_parts,
    input_specs,
    joined,
    output_specs,
    with_sizes,
)
from sbs_deploy.graph.comparison import rms
from sbs_train.contract.errors import SbsError

INTERPRETER = "onnxruntime"
"""Python module that computes graphs."""
Optimization = Literal["all", "none"]
"""all: with integer kernels and fusions. none: node by node, Q/DQ in float."""
BATCH = 64
"""Samples per run of `outputs_of`."""


def can_run() -> bool:
    """Whether ONNX Runtime is installed, so that graphs can be computed."""
    return importlib.util.find_spec(INTERPRETER) is not None


def outputs_of(model: onnx.ModelProto, inputs: Named) -> Arrays:
    """The outputs of a graph by name, computed node by node.

    Raises:
        SbsError: the inputs are not those of the graph, or the graph does not run.
    """
    specs, outputs = input_specs(model), output_specs(model)
    names = [spec.name for spec in outputs]
    session = session_of(model, "none")
    parts = in_parts(checked(inputs, specs, "the graph"), specs, BATCH)
    return joined([dict(zip(names, _run(session, names, part), strict=True)) for part in parts], growing(outputs))


def run_graph(model: onnx.ModelProto, tensors: Sequence[str], inputs: Named, level: Optimization) -> Arrays:
    """Values of the named tensors, inner ones included."""
    copy = with_sizes(model, inputs)
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(known[name] for name in tensors if name not in present)
    return dict(zip(tensors, _run(session_of(copy, level), list(tensors), inputs), strict=True))


def session_of(model: onnx.ModelProto, level: Optimization) -> Any:
    """A session of ONNX Runtime on a CPU.

    Raises:
        SbsError: ONNX Runtime is missing, or refuses the model.
    """
    if not can_run():
        raise SbsError(f"nothing here computes ONNX graphs; `pip install {INTERPRETER}`")
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # logged errors are raised as well
    if level == "none":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        reason = " ".join(str(error).split())[:200]
        raise SbsError(f"ONNX Runtime cannot load the model ({reason}); export it again") from error


def relative_error(found: Array, expected: Array) -> float:
    """Root mean square of the difference over that of the expected values; NaN if a value is NaN."""
    reference = expected.astype(np.float64)
    return rms(found - reference) / max(rms(reference), 1e-12)


def largest_difference(found: Named, expected: Named) -> float:
    """The largest difference of a value of any output."""
    return max(float(np.abs(found[name].astype(np.float64) - one).max()) for name, one in expected.items())


def _run(session: Any, tensors: list[str], inputs: Named) -> list[Array]:
    try:
        return list(session.run(tensors, dict(inputs)))
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise SbsError(f"ONNX Runtime cannot run the graph ({' '.join(str(error).split())[:200]})") from error
