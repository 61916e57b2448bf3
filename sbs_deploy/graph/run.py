"""Compute graphs with ONNX Runtime's CPU kernels: the reference for engines and for other graphs.

ONNX Runtime as a backend, with engines that are shipped and timed, is in backends/onnxruntime.
"""

import importlib.util
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from sbs_deploy.graph.comparison import rms
from sbs_deploy.graph.names import INPUT, OUTPUT, FloatArray
from sbs_train.contract.errors import SbsError

INTERPRETER = "onnxruntime"
"""Python module that computes graphs."""
Optimization = Literal["all", "none"]
"""all: with integer kernels and fusions. none: node by node, Q/DQ in float."""
BATCH = 64
"""Images per run of `logits_of`."""


def can_run() -> bool:
    """Whether ONNX Runtime is installed, so that graphs can be computed."""
    return importlib.util.find_spec(INTERPRETER) is not None


def logits_of(model: onnx.ModelProto, images: FloatArray) -> FloatArray:
    """Logits (N, classes) of images (N, C, H, W), computed node by node."""
    session = session_of(model, "none")
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([session.run([OUTPUT], {INPUT: np.ascontiguousarray(part, np.float32)})[0] for part in parts])


def run_graph(
    model: onnx.ModelProto, tensors: list[str], images: FloatArray, level: Optimization
) -> dict[str, npt.NDArray[Any]]:
    """Values of the named tensors, inner ones included, for images (N, C, H, W)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(known[name] for name in tensors if name not in present)
    return dict(zip(tensors, session_of(copy, level).run(tensors, {INPUT: images}), strict=True))


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


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Root mean square of the difference over that of the expected values; NaN if a value is NaN."""
    reference = expected.astype(np.float64)
    return rms(found - reference) / max(rms(reference), 1e-12)
