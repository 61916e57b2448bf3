"""Networks of other people in `profile-device`: their inputs, outputs, names and constants."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT_RTX
from sbs_deploy.cli import main
from sbs_deploy.measure.devices.networks import network_of
from sbs_deploy.measure.devices.normal import normal
from sbs_train.contract.device import load_device
from sbs_train.contract.errors import SbsError
from tests.sbs_deploy.lint.runtimes import rtx
from tests.sbs_deploy.measure.devices.formula import Formula

ort = pytest.importorskip("onnxruntime")
IMAGE = (3, 8, 8)

WORKS = {
    "another name": "(float[N,3,8,8] x) => (float[N,8] y) { a = Conv(x, w) r = Relu(a) p = GlobalAveragePool(r) "
    "f = Flatten(p) y = Gemm<transB=1>(f, v) }",
    "a feature map": "(float[N,3,8,8] x) => (float[N,8,8,8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, s) }",
    "two heads": "(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) { a = Conv(x, w) r = Relu(a) "
    "y = Conv(r, s) z = Sigmoid(r) }",
    "two images": "(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,8,8,8] y) { a = Conv(x, w) b = Conv(z, w) "
    "c = Add(a, b) r = Relu(c) y = Conv(r, s) }",
    "image and number": "(float[N,3,8,8] x, float t) => (float[N,8,8,8] y) { a = Conv(x, w) r = Relu(a) b = Mul(r, t) "
    "y = Conv(b, s) }",
    "words": "(int64[N,4] x) => (float[N,4,8] y) { e = Gather(v, x) y = MatMul(e, m) }",
    "a residual stream": "(float[N,4,8] x) => (float[N,4,8] y) { a = MatMul(x, m) b = Add(a, x) "
    "q = Constant<value_ints=[-1, 32]>() r = Reshape(b, q) t = Constant<value_ints=[-1, 4, 8]>() c = Reshape(r, t) "
    "d = Add(c, b) y = MatMul(d, m) }",
    "features": "(float[N,8] x) => (float[N,8] y) { a = Gemm<transB=1>(x, v) r = Relu(a) y = Gemm(r, v) }",
    "fixed batch": "(float[1,3,8,8] x) => (float[1,8,8,8] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, s) }",
    "open size": "(float[N,3,H,W] x) => (float[N,8,H,W] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, s) }",
    "half": "(float16[N,3,8,8] h) => (float16[N,8,8,8] y) { x = Cast<to=1>(h) a = Conv(x, w) r = Relu(a) "
    "b = Conv(r, s) y = Cast<to=10>(b) }",
    "indices": "(float[N,3,8,8] x) => (int64[N,1,8,8] y) { a = Conv(x, w) r = Relu(a) b = Conv(r, s) "
    "y = ArgMax<axis=1>(b) }",
    "named as the ends": "(float[N,3,8,8] x) => (float[N,8,8,8] y) { input = Conv(x, w) logits = Relu(input) "
    "y = Conv(logits, s) }",
    "a moved bias": "(float[N,3,8,8] x) => (float[N,8,8,8] y) { k = Identity(bias) a = Conv(x, w, k) r = Relu(a) "
    "y = Conv(r, s, k) }",
    "moved weights": "(float[N,3,8,8] x) => (float[N,8,8,8] y) { k = Identity(w) a = Conv(x, k) r = Relu(a) "
    "t = Transpose<perm=[1,0,2,3]>(s) y = Conv(r, t) }",
}
REFUSED = {
    "fixed batch of 4": ("(float[4,3,8,8] x) => (float[4,8,8,8] y) { y = Conv(x, w) }", "--batch 4"),
    "no batch": ("(float[8] x) => (float[8] y) { y = MatMul(x, m) }", "batch axis"),
    "open length": ("(int64[N,L] x) => (float[N,L,8] y) { e = Gather(v, x) y = MatMul(e, m) }", "axis 1 of input x"),
    "text": ("(string[N,4] x) => (string[N,4] y) { y = Identity(x) }", "input x"),
    "no layer": ("(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }", "no convolution"),
}


def parsed(text: str, *, constants: bool = False) -> onnx.ModelProto:
    """A graph whose weights are initializers, or Constant nodes."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 3, 1, 1), "s": (8, 8, 1, 1), "v": (8, 8), "m": (8, 8), "bias": (8,)}
    read = {name for node in model.graph.node for name in node.input}
    for name, shape in shapes.items():
        if name in read:
            value = onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
            if constants:
                model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=value))
            else:
                model.graph.initializer.append(value)
    return model


def answers(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(runner.run(None, feed))


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("which", WORKS)
def test_it_is_measured(which: str, constants: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROUNDS", 1), ("BLOCK_MS", 0.1), ("RUNS", (1, 2))):
        monkeypatch.setattr(f"sbs_deploy.measure.devices.session.{name}", value)
    monkeypatch.setattr("sbs_deploy.measure.devices.profile.VISITS", 1)
    out, path = tmp_path / "device.json", tmp_path / "net.onnx"
    onnx.save(parsed(WORKS[which], constants=constants), path)
    arguments = ["--backend", "onnxruntime", "--models", str(path), "--out", str(out), "--points", "2"]
    assert main(["profile-device", *arguments, "--input", "3,8,8"]) == 0
    network = load_device(out).networks[0]
    assert network.quantized_ms > 0 and network.layers


@pytest.mark.parametrize("which", WORKS)
def test_it_computes_what_it_did(which: str) -> None:
    model = parsed(WORKS[which])
    made = normal("net", model, 1, IMAGE)
    rng = np.random.default_rng(1)
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims = [axis.dim_value or (1 if not index else 8) for index, axis in enumerate(tensor.shape.dim)]
        values = abs(rng.standard_normal(dims)) if tensor.elem_type != 1 else rng.standard_normal(dims)
        feed[value.name] = np.asarray(values, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    found, expected = answers(made, feed), answers(model, feed)
    assert len(found) == len(expected)
    for own, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("which", WORKS)
def test_all_its_layers_are_quantized(which: str) -> None:
    network = network_of("net", parsed(WORKS[which]), 1, IMAGE)
    for variant in [one for one in network.variants(2) if not one.in_float][:2]:
        graph = network.graph(variant, ONNXRUNTIME)
        stored = [node for node in graph.graph.node if node.op_type == "DequantizeLinear" and "weight" in node.name]
        assert len(stored) == len(network.layers)


@pytest.mark.slow
@pytest.mark.parametrize("which", [name for name in WORKS if name != "fixed batch"])
def test_tensorrt_rtx_builds_it(which: str) -> None:
    network = network_of("net", parsed(WORKS[which]), 1, IMAGE)
    for variant in (network.variants(2)[0], network.variants(2)[-1]):
        plan, words = rtx(network.graph(variant, TENSORRT_RTX), ("SM89",))
        assert plan is not None, words


@pytest.mark.parametrize("which", REFUSED)
def test_it_is_refused_in_one_line_before_anything_is_measured(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    formula = Formula().install(monkeypatch)
    text, words = REFUSED[which]
    path = tmp_path / "net.onnx"
    onnx.save(parsed(text), path)
    out = tmp_path / "device.json"
    assert main(["profile-device", "--backend", "onnxruntime", "--models", str(path), "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sbs-deploy: error: ")]
    assert words in line
    assert formula.visits == 0 and not out.exists()


def test_a_file_of_our_own_stays_as_it_is() -> None:
    from tests.sbs_deploy.measure.devices.networks import residual_graph

    model = residual_graph()
    assert normal("net", model, 1, IMAGE).SerializeToString() == model.SerializeToString()


def test_a_quantized_one_is_refused() -> None:
    model = parsed(WORKS["another name"])
    model.graph.node[0].op_type = "QuantizeLinear"
    with pytest.raises(SbsError, match="is quantized"):
        network_of("net", model)


@pytest.mark.parametrize("opset", [13, 17, 20, 22, 24])
def test_other_opsets(opset: int) -> None:
    model = parsed(WORKS["another name"])
    model.opset_import[0].version = opset
    try:
        network = network_of("net", model, 1, IMAGE)
    except SbsError as error:
        assert "at opset 21" in str(error)
    else:
        assert network.graph(network.variants(2)[-1], ONNXRUNTIME)
