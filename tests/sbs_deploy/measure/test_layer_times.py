"""Node times by layer: hand-made nodes in every engine's words, and both CPU engines on an exported ResNet-20."""

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sbs_deploy.backends.base import NodeTime
from sbs_deploy.measure.layer_times import layer_times
from sbs_deploy.report.table import layer_lines
from sbs_train.contract.plan import load_plan
from sbs_train.contract.results import LayerTime
from sbs_train.contract.rundir import RunDir

LAYERS = ("stem", "block.conv", "head")
NODES = (
    ("QuantizeLinear", "stem.input_quantized", "input scale", "stem_q"),
    ("DequantizeLinear", "stem.input_dequantized", "stem_q scale", "stem_x"),
    ("DequantizeLinear", "stem.weight_dequantized", "stem.weight scale", "stem_w"),
    ("Conv", "stem", "stem_x stem_w", "stem_y"),
    ("Relu", "node_relu", "stem_y", "relu"),
    ("QuantizeLinear", "block.conv.input_quantized", "relu scale", "block_q"),
    ("Clip", "block.conv.input_clipped", "block_q low high", "block_c"),
    ("DequantizeLinear", "block.conv.input_dequantized", "block_c scale", "block_x"),
    ("Conv", "node_conv", "block_x block.conv.weight block.conv.weight_bias", "block_y"),
    ("Relu", "node_relu_1", "block_y", "relu_1"),
    ("Add", "node_add", "relu relu_1", "added"),
    ("GlobalAveragePool", "node_pool", "added", "pooled"),
    ("Reshape", "node_flat", "pooled shape", "flat"),
    ("Gemm", "node_linear", "flat head.weight_fp16 head.bias", "logits"),
    ("Cast", "input_to_fp16", "input", "input_fp16"),
    ("Transpose", "node_transpose", "input", "turned"),
)
CONSTANTS = (
    "stem.weight",
    "block.conv.weight",
    "block.conv.weight_bias",
    "head.weight_fp16",
    "head.bias",
    "scale",
    "shape",
)


def graph() -> onnx.ModelProto:
    nodes = [helper.make_node(op, inputs.split(), [output], name) for op, name, inputs, output in NODES]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in (*CONSTANTS, "low", "high")]
    return helper.make_model(helper.make_graph(nodes, "small", [], [], constants))


def node(name: str, kind: str, nodes: tuple[str, ...] = (), tensors: tuple[str, ...] = (), ms: float = 1.0) -> NodeTime:
    return NodeTime(name=name, kind=kind, ms=ms, nodes=nodes, tensors=tensors)


def only(time: NodeTime) -> LayerTime:
    (row,) = layer_times([time], graph(), LAYERS)
    assert row.share == 1 and row.nodes == (time.name,)
    return row


@pytest.mark.parametrize(
    ("time", "layer", "fused"),
    [
        # ONNX Runtime: the integer kernel keeps the name; the one in blocks of channels only bias and output.
        (node("stem_token_1", "QLinearConv", ("stem",), ("block_q", "stem.weight", "scale")), "stem", ()),
        (node("relu_1_nchwc", "Conv", ("relu_1",), ("reorder", "block.conv.weight_bias", "relu_1")), "block.conv", ()),
        (node("relu_1_nchwc", "Conv", ("relu_1",), ("reorder", "relu_1")), "block.conv", ()),
        (node("node_linear", "Gemm", ("node_linear",), ("logits", "head.weight_fp16")), "head", ()),
        # OpenVINO: all names, of nodes or of what they write.
        (node("stem/WithoutBiases", "Convolution", ("stem", "Multiply_1", "block.conv.input_quantized")), "stem", ()),
        (node("logits", "FullyConnected", ("logits",), ("logits",)), "head", ()),
        # TensorRT: several convolutions in one kernel.
        (node("stem + node_relu + node_conv", "CaskConvolution", ("stem", "node_conv")), "stem", ("block.conv",)),
    ],
)
def test_a_kernel_is_found_by_what_it_executes(time: NodeTime, layer: str, fused: tuple[str, ...]) -> None:
    row = only(time)
    assert (row.layer, row.category, row.fused) == (layer, "layer", fused)


@pytest.mark.parametrize(
    ("time", "category", "layer"),
    [
        (node("Transpose_token_3", "Transpose", ("Transpose",), ("block_q",)), "reformat", None),
        (node("stem_abcd_acdb", "Reorder"), "reformat", None),
        (node("Reformatting CopyNode for Input 0 to stem", "Reformat", ("stem.input_quantized",)), "reformat", None),
        (node("block.conv.input_clipped", "Clip", ("block.conv.input_clipped",)), "requantization", "block.conv"),
        (node("stem.weight_dequantized", "DequantizeLinear", ("stem.weight_dequantized",), ("stem.weight",)),
         "requantization", "stem"),
        (node("x", "Subgraph", ("block.conv.input_quantized", "block.conv.input_clipped")),
         "requantization", "block.conv"),
        (node("QuantizeLinear_token_9", "QuantizeLinear", ("QuantizeLinear",)), "requantization", None),
        (node("node_add", "QLinearAdd", ("node_add",), ("added", "scale")), "elementwise", None),
        (node("x", "Subgraph", ("node_add", "block.conv.input_quantized")), "elementwise", None),
        (node("pooled_nchwc", "GlobalAveragePool", ("pooled",), ("reorder", "pooled")), "pooling", None),
        (node("MaxPool_77", "MaxPool", ("MaxPool_77",)), "pooling", None),
        (node("node_flat", "Reshape", ("node_flat",), ("flat",)), "other", None),
        (node("Cast", "Cast", ("input_to_fp16",)), "reformat", None),
        (node("own", "Transpose", ("node_transpose",)), "other", None),
        (node("never heard of", "Frobnicate"), "other", None),
    ],
)  # fmt: skip
def test_the_rest_is_a_category(time: NodeTime, category: str, layer: str | None) -> None:
    row = only(time)
    assert (row.category, row.layer) == (category, layer)


@given(
    st.lists(
        st.builds(
            NodeTime,
            name=st.text(max_size=5),
            kind=st.sampled_from(("Conv", "Reorder", "Add", "QuantizeLinear", "MaxPool", "What")),
            ms=st.floats(0, 1e3),
            nodes=st.lists(st.sampled_from(("stem", "node_conv", "node_relu", "node_flat", "x")), max_size=3).map(
                tuple
            ),
            tensors=st.lists(st.sampled_from(("relu", "head.weight_fp16", "logits", "y")), max_size=3).map(tuple),
        ),
        max_size=8,
    )
)
def test_nothing_is_lost_and_nothing_counted_twice(times: list[NodeTime]) -> None:
    rows = layer_times(times, graph(), LAYERS)
    total = sum(time.ms for time in times)
    assert sum(row.ms for row in rows) == pytest.approx(total)
    assert sum(row.share for row in rows) == pytest.approx(1 if total else 0)
    assert sorted(name for row in rows for name in row.nodes) == sorted(time.name for time in times)


def test_the_lines_people_read_add_up() -> None:
    names = [
        node(f"k{i}", "Conv", (name,), ms=float(i + 1)) for i, name in enumerate(("stem", "node_conv", "node_linear"))
    ]
    rows = layer_times([*names, node("r", "Reorder", ms=4.0)], graph(), LAYERS)
    lines = layer_lines(rows, top=1)
    assert [(name, ms) for name, ms, _ in lines] == [("head", 3.0), ("2 more layers", 3.0), ("reformat", 4.0)]
    assert sum(share for _, _, share in lines) == pytest.approx(1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["model_ort", "model_trt", "model_slim", "model_fp32"])
def test_every_layer_of_an_exported_network_is_found(exported: RunDir, engine: str, name: str) -> None:
    pytest.importorskip(engine)
    check_all_found(exported, getattr(exported, name), engine)


def test_a_built_engine_is_told_by_the_graph_it_was_built_from(exported: RunDir, tmp_path: Path) -> None:
    from sbs_deploy.backends.request import Request
    from sbs_deploy.backends.runtime import build_engine
    from sbs_deploy.backends.spec import ONNXRUNTIME

    for source, precision in ((exported.model_ort, "int8"), (exported.model_slim, "fp32")):
        built = build_engine(
            source, tmp_path / source.name, Request(backend=ONNXRUNTIME, precision=precision), made_from={}
        )
        check_all_found(exported, built.path, "onnxruntime", source)


def check_all_found(run: RunDir, path: Path, engine: str, source: Path | None = None) -> None:
    from sbs_deploy.backends.runtime import open_engine
    from sbs_deploy.backends.spec import backend_named
    from sbs_deploy.measure.run import bench_inputs

    plan = load_plan(run.plan)
    inputs = bench_inputs(run, plan, 2)
    with open_engine(path, backend_named(engine), "int8", 1, built=False) as opened:
        times = opened.node_times(inputs, 2)
    rows = layer_times(times, onnx.load(source or path), [layer.name for layer in plan.layers])
    found = {row.layer for row in rows if row.category == "layer"} | {name for row in rows for name in row.fused}
    assert found == {layer.name for layer in plan.layers}
    assert sum(row.share for row in rows if row.category != "other") > 0.95
    assert sum(row.ms for row in rows) == pytest.approx(sum(time.ms for time in times))
    assert all(time.ms >= 0 for time in times)
