"""What a graph computes, by ONNX Runtime's CPU kernels: the reference for engines and for other graphs.

Here alone ONNX Runtime interprets graphs; as a backend, whose engines are shipped and timed, it has its own room.
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
"""Module that computes graphs."""
Optimization = Literal["all", "none"]
"""all: with integer kernels and fusions. none: every node as it stands, Q/DQ in float."""
BATCH = 64
"""Images that run at a time where only logits are asked for."""


def can_run() -> bool:
    """Whether graphs can be computed here."""
    return importlib.util.find_spec(INTERPRETER) is not None


def logits_of(model: onnx.ModelProto, images: FloatArray) -> FloatArray:
    """Logits (N, classes) of images (N, C, H, W), every node as it stands."""
    session = session_of(model, "none")
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([session.run([OUTPUT], {INPUT: np.ascontiguousarray(part, np.float32)})[0] for part in parts])


def run_graph(
    model: onnx.ModelProto, tensors: list[str], images: FloatArray, level: Optimization
) -> dict[str, npt.NDArray[Any]]:
    """The named tensors, inner ones by making them outputs of a copy in memory, for images (N, C, H, W)."""
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
    options.log_severity_level = 4  # what it logs as an error it also raises
    if level == "none":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # they have no common base
        reason = " ".join(str(error).split())[:200]
        raise SbsError(f"ONNX Runtime cannot load the model ({reason}); export it again") from error


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Root mean square of the difference, in that of the expected values; NaN where one of them is."""
    reference = expected.astype(np.float64)
    return rms(found - reference) / max(rms(reference), 1e-12)
