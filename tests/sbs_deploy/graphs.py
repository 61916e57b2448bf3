"""Small real graphs and runs for the deployment tests: no torch, no training."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer, save_codes
from sbs_train.contract import rundir
from sbs_train.contract.grid import Quantizer
from sbs_train.contract.plan import ChannelGroup, LayerPlan, ModelSpec, Plan, TensorSpec, make_plan, save_plan
from sbs_train.contract.rundir import RunDir

CLASSES = 10
STEP = 0.04
"""Of the inputs of all layers."""
IMAGE = (3, 8, 8)
CONVOLUTIONS = ["conv1", "conv2", "conv3"]


def float_model() -> onnx.ModelProto:
    """conv1 - relu - conv2 - relu - conv3 - relu - pool - linear, in float32."""
    return _Builder(None).model()


def qdq_model(dialect: Literal["trt", "ort"]) -> onnx.ModelProto:
    """The same network quantized: int8 with zero-point 0, or uint8 as ONNX Runtime fuses it."""
    return _Builder(dialect).model()


def make_run(root: Path, *, model_name: str = "resnet20", layer_prefix: str = "") -> RunDir:
    """A run as `sbs-train` and `sbs-deploy export` leave it."""
    run = rundir.create_run(root)
    rundir.write_json(run.config, {"model": model_name})
    save_plan(small_plan(model_name, layer_prefix), run.plan)
    rundir.write_json(
        run.metrics,
        {
            "fp32": {"top1": 98.5, "top5": 100.0, "images": 360},
            "search": {"top1": 95.25, "top5": 99.0, "images": 360},
            "finetune": {"top1": 97.75, "top5": 99.5, "images": 360},
            "seconds": {"search": 12.5},
        },
    )
    plan = {"plan.json": rundir.sha256_of(run.plan)}
    models = ((run.model_fp32, float_model()), (run.model_slim, float_model()))
    models += ((run.model_trt, qdq_model("trt")), (run.model_ort, qdq_model("ort")))
    for path, model in models:
        with rundir.atomic_path(path) as temporary:
            onnx.save(model, temporary)
        rundir.write_manifest(path, plan, versions={"onnx": onnx.__version__})
    save_codes(small_codes(), run.codes)
    rundir.write_manifest(run.codes, plan)
    with rundir.atomic_path(run.golden) as temporary, temporary.open("wb") as file:
        inputs = np.random.default_rng(1).standard_normal((4, *IMAGE)).astype(np.float32)
        np.savez(file, inputs=inputs, logits=np.zeros((4, CLASSES), np.float32), labels=np.zeros(4, np.int64))
    rundir.write_manifest(run.golden, plan)
    return run


def small_codes() -> Codes:
    """The integers of `qdq_model`, whose floats are `float_model`'s weights."""
    arrays = {t.name: numpy_helper.to_array(t) for t in qdq_model("trt").graph.initializer}
    ends = {"conv1": (-128, 127), "conv2": (0, 15), "conv3": (0, 127)}
    layers = {
        name: QuantizedLayer(
            codes=arrays[f"{name}.weight"],
            scale_O=arrays[f"{name}.scale"],
            input=Quantizer(step=STEP, code_min=low, code_max=high),
        )
        for name, (low, high) in ends.items()
    }
    return Codes(layers=layers)


def small_plan(model_name: str = "resnet20", prefix: str = "") -> Plan:
    """Three convolutions (8/8, 2/4 with half its filters pruned, 8/8) and a linear layer."""
    shapes = (
        ("conv1", "in", "a", 3, 16, 8, 8, 126),
        ("conv2", "a", "b", 16, 32, 2, 4, 15),
        ("conv3", "b", "c", 32, 16, 8, 8, 120),
    )
    kept = {"in": 3, "a": 16, "b": 16, "c": 16, "out": CLASSES}
    layers = [
        LayerPlan(
            name=prefix + name,
            kind="conv",
            bits_w=bits_w,
            bits_a=bits_a,
            clip_w=1.0,
            clip_a=STEP * steps,
            signed_a=source == "in",
            macs=c_in * c_out * 9 * 64,
            weights=c_in * c_out * 9,
            kept_in=kept[source],
            kept_out=kept[sink],
            group_in=source,
            group_out=sink,
        )
        for name, source, sink, c_in, c_out, bits_w, bits_a, steps in shapes
    ]
    layers.append(
        LayerPlan(
            name=prefix + "fc",
            kind="linear",
            bits_w=32,
            bits_a=32,
            clip_w=None,
            clip_a=None,
            signed_a=False,
            macs=16 * CLASSES,
            weights=16 * CLASSES,
            kept_in=16,
            kept_out=CLASSES,
            group_in="c",
            group_out="out",
        )
    )
    sizes = {"in": 3, "a": 16, "b": 32, "c": 16, "out": CLASSES}
    groups = [
        ChannelGroup(
            id=name,
            size=size,
            kept=list(range(kept[name])),
            prunable=name == "b",
            producers=[layer.name for layer in layers if layer.group_out == name],
            consumers=[layer.name for layer in layers if layer.group_in == name],
        )
        for name, size in sizes.items()
    ]
    return make_plan(
        model=ModelSpec(name=model_name, arguments={"width": 16, "num_classes": CLASSES}),
        inputs=[TensorSpec(name="input", dtype="float32", shape=["batch", 3, 8, 8])],
        outputs=[TensorSpec(name="logits", dtype="float32", shape=["batch", CLASSES])],
        grid="int8",
        bits_weights=[2, 4, 8],
        bits_activations=[2, 4, 8],
        layers=layers,
        groups=groups,
    )


class _Builder:
    def __init__(self, dialect: Literal["trt", "ort"] | None) -> None:
        self.dialect = dialect
        self.zero_type = np.int8 if dialect == "trt" else np.uint8
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def model(self) -> onnx.ModelProto:
        x = "input"
        zero = 0 if self.dialect == "trt" else 128
        for name, c_in, c_out, clip in (("conv1", 3, 16, None), ("conv2", 16, 32, (0, 15)), ("conv3", 32, 16, None)):
            x = self._quantize(x, f"q_{name}", zero if name == "conv1" else 0, clip)
            x = self._node("Relu", [self._convolution(x, name, c_in, c_out)], f"{name}_relu")
        x = self._node("GlobalAveragePool", [x], "pool")
        x = self._node("Flatten", [x], "flat")
        weight = self._constant("fc.weight", self.rng.standard_normal((16, CLASSES)).astype(np.float32))
        self.nodes.append(helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *IMAGE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def _quantize(self, x: str, name: str, zero: int, clip: tuple[int, int] | None) -> str:
        if self.dialect is None:
            return x
        scale = self._constant(f"{name}_scale", np.float32(STEP))
        zero_point = self._constant(f"{name}_zero", self.zero_type(zero))
        x = self._node("QuantizeLinear", [x, scale, zero_point], f"{name}_Q")
        if clip is not None:
            ends = [
                self._constant(f"{name}_{end}", self.zero_type(v)) for end, v in zip(("lo", "hi"), clip, strict=True)
            ]
            x = self._node("Clip", [x, *ends], f"{name}_clip")
        return self._node("DequantizeLinear", [x, scale, zero_point], f"{name}_DQ")

    def _convolution(self, x: str, name: str, c_in: int, c_out: int) -> str:
        codes = self.rng.integers(-7, 8, (c_out, c_in, 3, 3)).astype(np.int8)
        scales = self.rng.uniform(0.01, 0.02, c_out).astype(np.float32)
        bias = self._constant(f"{name}.bias", self.rng.standard_normal(c_out).astype(np.float32))
        if self.dialect is None:
            weight = self._constant(f"{name}.weight", codes.astype(np.float32) * scales[:, None, None, None])
        else:
            parts = [
                self._constant(f"{name}.weight", codes),
                self._constant(f"{name}.scale", scales),
                self._constant(f"{name}.zero", np.zeros(c_out, np.int8)),
            ]
            weight = self._node("DequantizeLinear", parts, f"{name}_weight_DQ", axis=0)
        return self._node("Conv", [x, weight, bias], name, pads=[1, 1, 1, 1])
