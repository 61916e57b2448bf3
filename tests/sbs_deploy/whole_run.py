"""A whole run, exported and valid, made without torch: what a device finds in a bundle."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from sbs_deploy.export.codes import Arrays, Codes, QuantizedLayer, save_arrays, save_codes
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.pipeline import FORMAT
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.graph.run import run_graph
from sbs_deploy.validate.run import validate_run
from sbs_train.contract import rundir
from sbs_train.contract.grid import Quantizer, range_quantizer
from sbs_train.contract.plan import OutputRange, Plan, save_plan
from sbs_train.contract.rundir import RunDir
from tests.sbs_deploy.graphs import CONVOLUTIONS, IMAGE, float_model, make_run, qdq_model, small_plan
from tests.sbs_deploy.report.histories import record_history, search_rows

STEP = 0.04
QUANTIZERS = {
    "conv1": Quantizer(step=STEP, code_min=-128, code_max=127),
    "conv2": Quantizer(step=STEP, code_min=0, code_max=15),
    "conv3": Quantizer(step=STEP, code_min=0, code_max=127),
}
HIGH = 4.0
TAPS = 2
FLOATS = 4


def make_whole_run(root: Path, *, images: int = 12, ranges: bool = False) -> RunDir:
    """The run of `graphs.make_run` with the codes of its network, files that agree, and a validation that passed.

    `ranges` gives the plan ranges of outputs.
    """
    run = make_run(root)
    outputs = [OutputRange(name=name, low=-HIGH, high=HIGH) for name in CONVOLUTIONS if ranges]
    save_plan(Plan(**{**small_plan().model_dump(), "ranges": outputs}), run.plan)
    output = range_quantizer(-HIGH, HIGH) if ranges else None
    record_history(run, search_rows())
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in qdq_model("trt").graph.initializer}
    codes = Codes(
        layers={
            name: QuantizedLayer(
                codes=tensors[f"{name}.weight"],
                scale_O=tensors[f"{name}.scale"],
                input=QUANTIZERS[name],
                output=output,
            )
            for name in CONVOLUTIONS
        }
    )
    save_codes(codes, run.codes)
    plan_sha256 = rundir.sha256_of(run.plan)
    for dialect, path in ((TRT, run.model_trt), (ORT, run.model_ort)):
        save_onnx(quantized_onnx(float_model(), codes, dialect, plan_sha256=plan_sha256), path)
    golden = golden_arrays(onnx.load(run.model_trt), images)
    plain = run_graph(float_model(), ["logits"], {"input": golden["input/input"][:FLOATS]}, "none")["logits"]
    save_arrays({**golden, "float/logits": plain.astype(np.float64), "float32/logits": plain}, run.golden)
    trained = {"format": FORMAT, run.plan.name: plan_sha256}
    for path in (run.codes, run.model_slim):
        rundir.write_manifest(path, trained)
    rundir.write_manifest(run.golden, {**trained, run.config.name: rundir.sha256_of(run.config)})
    slim = {path.name: rundir.sha256_of(path) for path in (run.model_slim, run.codes)}
    for path in (run.model_trt, run.model_ort):
        rundir.write_manifest(path, {**trained, **slim})
    assert validate_run(run).passed
    return run


def golden_arrays(model: onnx.ModelProto, images: int) -> Arrays:
    """What a quantized graph makes, node by node, of noise: in place of PyTorch's answers."""
    inputs = np.random.default_rng(1).standard_normal((images, *IMAGE)).astype(np.float32)
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(f"{name}_out") for name in CONVOLUTIONS)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits, *taps = session.run(None, {"input": inputs})
    return {
        "input/input": inputs,
        "output/logits": logits,
        "labels": logits.argmax(1),
        "exact/logits": logits.astype(np.float64),
        **{f"tap/{name}": tap[:TAPS] for name, tap in zip(CONVOLUTIONS, taps, strict=True)},
    }
