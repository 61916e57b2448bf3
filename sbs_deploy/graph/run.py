"""What a graph computes on ONNX Runtime's CPU kernels: the reference for engines and for other graphs."""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from sbs_deploy.graph.comparison import rms
from sbs_deploy.graph.names import INPUT, OUTPUT, FloatArray

Optimization = Literal["all", "none"]
"""Of ONNX Runtime's graph; none: every node as it stands, Q/DQ in float."""
BATCH = 64
"""Images that run at a time where only logits are asked for."""


def logits_of(model: onnx.ModelProto, images: FloatArray) -> FloatArray:
    """Logits (N, classes) of images (N, C, H, W), every node as it stands."""
    session = _session(model, "none")
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([session.run([OUTPUT], {INPUT: np.ascontiguousarray(part, np.float32)})[0] for part in parts])


def run_graph(
    model: onnx.ModelProto, tensors: list[str], images: FloatArray, level: Optimization
) -> dict[str, npt.NDArray[Any]]:
    """The named tensors, inner ones by making them outputs of a copy in memory, on ONNX Runtime's CPU kernels."""
    copy = onnx.ModelProto()
    copy.CopyFrom(onnx.shape_inference.infer_shapes(model))
    known = {value.name: value for value in (*copy.graph.value_info, *copy.graph.output)}
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(known[name] for name in tensors if name not in present)
    return dict(zip(tensors, _session(copy, level).run(tensors, {INPUT: images}), strict=True))


def _session(model: onnx.ModelProto, level: Optimization) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if level == "none":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Root mean square of the difference, in that of the expected values; NaN where one of them is."""
    reference = expected.astype(np.float64)
    return rms(found - reference) / max(rms(reference), 1e-12)
