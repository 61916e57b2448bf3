"""Networks that nobody here wrote, through the whole of training and export, layer by layer against ONNX Runtime, and
into engines of TensorRT-RTX in INT8, FP16 and FP8."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from sbs_deploy.backends.request import RTX_COMPUTE_CAPABILITIES
from sbs_deploy.backends.spec import TENSORRT_RTX, choose_backend, import_problem
from sbs_deploy.backends.tensorrt.plan_text import plan_convolutions
from sbs_deploy.build import BuildOptions, engine_stage
from sbs_deploy.export.pipeline import export_run
from sbs_deploy.export.slim import slim_network
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.names import QUANTIZED_OPS
from sbs_deploy.lint.run import lint_model
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.plan import InputSpec, load_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.trust import trusting
from sbs_train.inputs import data as inputs_data
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit
from sbs_train.stages import train as run_stage
from sbs_train.stages.weights import restore
from sbs_train.tasks import load

SMALL = Path(__file__).with_name("small_networks.py")
MODELS = [
    f"{SMALL}:vgg",
    f"{SMALL}:vit",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "timm:efficientnet_lite0",
    "timm:tf_efficientnetv2_b0",
    "timm:mobilevit_xxs",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
    "timm:resnet18d",
]
SIZE = 64
TIES = 1e-3
"""Part of a layer's outputs that may differ: an input half-way between two codes may round either way."""
FP8_FILTER = 32
"""Elements of a filter up to which TensorRT-RTX 1.7.1 computes convolutions in FP8; larger ones it computes in FP16."""


def pictures(size, count=24):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    split = MemorySplit(images=images, labels=labels)
    spec = InputSpec(channels=3, height=size, width=size, mean=[0.5] * 3, std=[0.25] * 3)
    return MemoryDataset(
        name="noise", input=spec, num_classes=10, shift=0, flip=False, train=split, val=split, test=split
    )


def compressed(monkeypatch, tmp_path, model, size=SIZE, **search):
    """A run of two search steps and one of fine-tuning."""
    data = pictures(size)
    for module in (load, inputs_data):
        monkeypatch.setattr(module, "dataset_of", lambda config: data)
    config = TrainConfig(
        model=model,
        data="fashion-mnist",
        target="24x",
        batch_size=8,
        pretrain=PretrainConfig(epochs=0),
        calibrate=dataclasses.replace(TrainConfig().calibrate, batches=1),
        search=SearchConfig(epochs=1, steps_per_epoch=2, **search),
        finetune=FinetuneConfig(epochs=1, steps_per_epoch=1),
    )
    out = tmp_path / "run"
    run_stage.train(config, out)
    return RunDir(out)


def check_layers(slim, float_graph, proto, images):
    """Every quantized layer makes of the very tensor that it read in ONNX Runtime what PyTorch's makes of it."""
    model = proto.SerializeToString()
    quantized = {f"{name}.weight" for name in slim.codes.layers}
    reads, writes = {}, {}
    constants = {t.name for t in float_graph.graph.initializer}
    biased = {
        i: n.output[0]
        for n in float_graph.graph.node
        if n.op_type == "Add" and constants.intersection(n.input)
        for i in n.input
    }
    for node in float_graph.graph.node:
        if node.op_type in QUANTIZED_OPS and node.input[1] in quantized:
            name = node.input[1].removesuffix(".weight")
            reads[name] = node.input[0]
            # A MatMul's bias is an addition of a constant behind it.
            writes[name] = biased.get(node.output[0], node.output[0]) if node.op_type == "MatMul" else node.output[0]
    assert set(reads) == set(slim.codes.layers)
    present = {i for node in proto.graph.node for i in node.input}
    makers = {output: node for node in float_graph.graph.node for output in node.output}
    # A Clip (ReLU6) that only quantizers read has become part of them.
    clips = {t: makers[t] for t in reads.values() if t not in present}
    assert all(node.op_type == "Clip" for node in clips.values())
    found = run_with(
        model, sorted({clips[t].input[0] if t in clips else t for t in {*reads.values(), *writes.values()}}), images
    )
    values = {t.name: onnx.numpy_helper.to_array(t) for t in float_graph.graph.initializer}
    for tensor, node in clips.items():
        found[tensor] = np.clip(found[node.input[0]], *(values[bound] for bound in node.input[1:3]))
    for name, quantizer in ((n, layer.input) for n, layer in slim.codes.layers.items()):
        x = torch.from_numpy(found[reads[name]])
        codes = torch.clamp(torch.round(x / quantizer.step), quantizer.code_min, quantizer.code_max)
        with torch.no_grad():
            expected = slim.model.get_submodule(name)(codes * quantizer.step).numpy()
        scale = np.abs(expected).max() + 1e-12
        wrong = np.abs(found[writes[name]] - expected) > 1e-4 * scale
        assert wrong.mean() <= TIES, f"{name}: {100 * wrong.mean():.2f} % of its outputs differ"


def run_with(model, tensors, images):
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    known = {v.name: v for v in (*proto.graph.value_info, *proto.graph.output)}
    present = {o.name for o in proto.graph.output} | {i.name for i in proto.graph.input}
    proto.graph.output.extend(known[t] for t in tensors if t not in present)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = proto.graph.input[0].name
    outputs = [t for t in tensors if t != name]
    return {name: images, **dict(zip(outputs, session.run(outputs, {name: images}), strict=True))}


def check(run):
    """Export as the command does, every layer against PyTorch's, and the engines of TensorRT-RTX."""
    network, plan = restore(run)
    slim = slim_network(network, plan)
    assert slim.codes.layers
    export_run(run, progress=lambda message: None)
    graph = load_onnx(run.model_slim)
    images = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    for path in (run.model_trt, run.model_ort):
        proto = load_onnx(path)
        check_layers(slim, graph, proto, images)
        check_biases(slim.codes, graph, proto, integer=path == run.model_ort)
        check_additions(plan, proto)
    if import_problem(TENSORRT_RTX) is None:
        for precision in ("int8", "fp16", "fp8"):
            check_engine(run, precision)


def check_biases(codes, graph, proto, *, integer):
    """Every bias of a quantized layer is a whole number of its accumulator's steps, int32 where the dialect has it."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    readers = {i: node for node in graph.graph.node for i in node.input}
    for node in graph.graph.node:
        name = node.input[1].removesuffix(".weight") if node.op_type in QUANTIZED_OPS else None
        if name not in codes.layers:
            continue
        behind = readers.get(node.output[0])
        if node.op_type == "MatMul" and behind is not None and behind.op_type == "Add":
            bias = next((values[i] for i in behind.input if i in values), None)
        else:
            bias = values[node.input[2]] if len(node.input) > 2 else None
        if bias is None:
            continue
        layer = codes.layers[name]
        alive_O = layer.codes.reshape(len(layer.codes), -1).any(1)
        steps_O = (bias.astype(np.float64) / (np.float64(layer.input.step) * layer.scale_O))[alive_O]
        np.testing.assert_allclose(steps_O, np.rint(steps_O), rtol=1e-6, atol=1e-2, err_msg=name)
        if integer and node.op_type != "MatMul":
            assert stored[f"{name}.bias_codes"].dtype == np.int32
            assert nodes[name].input[2] == f"{name}.bias_dequantized"


def check_additions(plan, proto):
    """Both operands of every residual addition that the plan quantizes are quantized, and no others."""
    dequantized = {o for node in proto.graph.node if node.op_type == "DequantizeLinear" for o in node.output}
    adds = [node for node in proto.graph.node if node.op_type == "Add" and dequantized.issuperset(node.input)]
    assert len(adds) == len(plan.adds)


def check_engine(run, precision):
    """A batch of 1 to 32, on the graph and with the settings of `sbs-deploy build --engine`."""
    choice = choose_backend("tensorrt-rtx")
    built = engine_stage(run, BuildOptions(precision=precision, choice=choice))
    details, legal = built.details, load_onnx(run.deploy / "legal" / f"model.{precision}.tensorrt-rtx.onnx")
    assert details["profile"] == {"opt": 1, "max": 32}
    assert details["shapes"][legal.graph.input[0].name] == ["batch", 3, SIZE, SIZE]
    assert details["compute_capabilities"] == {"fp8": ["SM89", "SM120"]}.get(precision, [*RTX_COMPUTE_CAPABILITIES])
    if not details["legal"]["float32_layers"]:
        assert not [f for f in lint_model(legal, ["trt"]).findings if f.rule.id == "fp32"]
    kernels = plan_convolutions(built.path.read_bytes())
    if kernels is None:
        return  # the text of the plan is not recognised: its format changed
    narrow = {"int8": "int8", "fp16": "half", "fp8": "fp8_e4m3"}[precision]
    weights = {t.name: t.dims for t in legal.graph.initializer}
    large = {node.name for node in legal.graph.node if np.prod(weights.get(f"{node.name}.weight", [])[2:]) > FP8_FILTER}
    wide = {"float"} if details["legal"]["float32_layers"] else set()
    if precision == "fp16":
        # In float32 is only what the legal graph keeps there: some of an untrained network's values are too small.
        pairs = {(kernel.input_type, kernel.weight_type) for kernel in kernels}
        assert pairs - {(kind, kind) for kind in wide} == {("half", "half")}
    else:
        assert set(details["float_layers"]) == (large if precision == "fp8" else set())
    assert {kernel.input_type for kernel in kernels} <= {narrow, "half", *wide}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.removeprefix(f"{SMALL}:"))
def test_a_network_nobody_here_wrote_goes_all_the_way(monkeypatch, tmp_path, model):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    with trusting(everything=True):
        check(compressed(monkeypatch, tmp_path, model))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_residual_streams_are_pruned_if_asked_for(monkeypatch, tmp_path, model):
    run = compressed(monkeypatch, tmp_path, model, prune="coupled", align=8)
    plan = load_plan(run.plan)
    dense = {row.name for row in plan.layers if row.kind != "depthwise"}
    assert any(g.prunable and len(dense.intersection(g.producers)) > 1 for g in plan.groups)
    assert all(len(g.kept) % 8 == 0 for g in plan.groups if g.prunable and len(g.kept) < g.size)
    check(run)
