"""Graphs as ONNX text, small quantized layers, and their execution, for the tests of the Q/DQ pass."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer
from sbs_deploy.export.dialects import Dialect
from sbs_deploy.export.qdq import quantized_onnx
from sbs_train.contract.grid import Level, Quantizer

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'


def graph(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    """A graph in ONNX's text form; initializer names may then hold dots, which the text cannot."""
    model = onnx.parser.parse_model(text)
    for name, value in initializers.items():
        dotted = f"{name}.weight" if name[0] in "wv" else name
        model.graph.initializer.append(numpy_helper.from_array(value, dotted))
        for node in model.graph.node:
            for index, used in enumerate(node.input):
                if used == name:
                    node.input[index] = dotted
    onnx.checker.check_model(model, full_check=True)
    return model


def layer(codes: np.ndarray, level: Level, *, step: float = 0.1, scale: float = 0.05) -> Any:
    rng = np.random.default_rng(0)
    return QuantizedLayer(
        codes=codes.astype(np.int8),
        scale_O=(scale * rng.uniform(0.5, 1.5, len(codes))).astype(np.float32),
        input=quantizer(level, step),
    )


def quantizer(level: Level, step: float = 0.1) -> Quantizer:
    return Quantizer(step=float(np.float32(step)), code_min=level.code_min, code_max=level.code_max)


def insert(model: onnx.ModelProto, layers: dict[str, QuantizedLayer], dialect: Dialect) -> onnx.ModelProto:
    return quantized_onnx(model, Codes(layers=layers), dialect, plan_sha256="ab")


def execute(model: onnx.ModelProto, x: np.ndarray, *, optimized: bool = False) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def count(model: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)
