"""Networks that nobody here wrote, through the whole of training and export, layer by layer against ONNX Runtime."""

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from sbs_deploy.export.float_onnx import slim_onnx
from sbs_deploy.export.ort import ORT
from sbs_deploy.export.qdq import LAYER_OPS, quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_deploy.export.trt import TRT
from sbs_train.contract.config import FinetuneConfig, PretrainConfig, SearchConfig, TrainConfig
from sbs_train.contract.plan import InputSpec
from sbs_train.contract.rundir import RunDir
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit
from sbs_train.stages import run as run_stage
from sbs_train.stages.weights import restore

FAST = ["torchvision:resnet18"]
SLOW = [
    "torchvision:mobilenet_v3_small",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:vit_b_16",
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
    """A run of two search steps and one of fine-tuning: (network, plan)."""
    data = pictures(size)
    monkeypatch.setattr(run_stage, "dataset_of", lambda config: data)
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
    return restore(RunDir(out))


def check_layers(slim, proto, images):
    """Every quantized layer makes of the very tensor that it read in ONNX Runtime what PyTorch's makes of it."""
    model = proto.SerializeToString()
    weights = {f"{name}.weight" for name in slim.codes.layers}
    float_graph = slim_onnx(slim, pictures(images.shape[2]).input)
    reads, writes = {}, {}
    constants = {t.name for t in float_graph.graph.initializer}
    biased = {
        i: n.output[0]
        for n in float_graph.graph.node
        if n.op_type == "Add" and constants.intersection(n.input)
        for i in n.input
    }
    for node in float_graph.graph.node:
        if node.op_type in LAYER_OPS and node.input[1] in weights:
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
    outputs = [t for t in tensors if t != "input"]
    return {"input": images, **dict(zip(outputs, session.run(outputs, {"input": images}), strict=True))}


def check(network, plan, size):
    slim = slim_network(network, plan)
    assert slim.codes.layers
    graph = slim_onnx(slim, plan.input)
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    protos = {d.name: quantized_onnx(graph, slim.codes, d, plan_sha256="0") for d in (TRT, ORT)}
    check_layers(slim, protos["trt"], images)
    check_layers(slim, protos["ort"], images)
    build_rtx(protos["trt"], size)


def build_rtx(proto, size):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(proto.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("input", (1, 3, size, size), (1, 3, size, size), (2, 3, size, size))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("model", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_network_nobody_here_wrote_goes_all_the_way(monkeypatch, tmp_path, model):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    check(*compressed(monkeypatch, tmp_path, model), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_residual_streams_are_pruned_if_asked_for(monkeypatch, tmp_path, model):
    network, plan = compressed(monkeypatch, tmp_path, model, prune="coupled", align=8)
    dense = {row.name for row in plan.layers if row.kind != "depthwise"}
    assert any(g.prunable and len(dense.intersection(g.producers)) > 1 for g in plan.groups)
    assert all(len(g.kept) % 8 == 0 for g in plan.groups if g.prunable and len(g.kept) < g.size)
    check(network, plan, SIZE)
