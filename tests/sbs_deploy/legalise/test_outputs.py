"""More pairs in random graphs: every layer then runs in integers, and answers stay within the noise of 8 bits."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sbs_deploy.export.codes import Codes, QuantizedLayer, load_codes, save_codes
from sbs_deploy.export.dialects import ORT
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.graph.comparison import rms
from sbs_deploy.graph.run import run_graph
from sbs_deploy.legalise.outputs import with_quantized_outputs
from sbs_train.contract.grid import Quantizer, activation_role, make_grid, range_quantizer

INPUT, OUTPUT = "input", "logits"

CHANNELS, SIDE = 8, 6
STEPS = (
    "conv",
    "relu",
    "relu6",
    "silu",
    "hard",
    "gate",
    "se",
    "gelu",
    "join",
    "shuffle",
    "split",
    "max",
    "mean",
    "add",
)


class Network:
    """A chain of blocks on CHANNELS x SIDE x SIDE, between two convolutions."""

    def __init__(self, steps: list[str], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.read: dict[str, str] = {}
        before = last = self.conv(INPUT)
        for step in steps:
            before, last = last, getattr(self, step)(*((last, before) if step in ("join", "add") else (last,)))
        self.conv(last, output=OUTPUT)

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: object, kind: type = np.int64) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors[name] = np.asarray(value, kind)
        return name

    def conv(self, x: str, inputs: int = CHANNELS, output: str = "") -> str:
        name = f"conv{len(self.weights)}"
        codes = self.rng.integers(-120, 121, (CHANNELS, inputs, 1, 1)).astype(np.int8)
        scale = (0.02 / np.sqrt(inputs) * self.rng.uniform(0.5, 1.5, CHANNELS)).astype(np.float32)
        self.weights[name], self.read[name] = (codes, scale), x
        self.tensors[f"{name}.weight"] = codes * scale[:, None, None, None]
        self.tensors[f"{name}.bias"] = self.rng.normal(0, 0.5, CHANNELS).astype(np.float32)
        return self.node("Conv", x, f"{name}.weight", f"{name}.bias", output=output)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.constant(0, np.float32), self.constant(6, np.float32))

    def silu(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", x))

    def hard(self, x: str) -> str:
        return self.node("HardSwish", x)

    def gate(self, x: str) -> str:
        return self.node("Mul", self.node("HardSigmoid", x, alpha=1 / 6), x)

    def se(self, x: str) -> str:
        return self.node("Mul", x, self.node("Sigmoid", self.conv(self.node("GlobalAveragePool", x))))

    def gelu(self, x: str) -> str:
        return self.node("Gelu", x)

    def join(self, x: str, other: str) -> str:
        return self.conv(self.node("Concat", x, other, axis=1), 2 * CHANNELS)

    def shuffle(self, x: str) -> str:
        x = self.node("Reshape", x, self.constant([0, 2, CHANNELS // 2, SIDE, SIDE]))
        x = self.node("Transpose", x, perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", x, self.constant([0, CHANNELS, SIDE, SIDE]))

    def split(self, x: str) -> str:
        parts = [f"t{len(self.nodes)}{side}" for side in "ab"]
        self.nodes.append(helper.make_node("Split", [x], parts, axis=1, num_outputs=2))
        return self.conv(self.node("Concat", self.conv(parts[0], CHANNELS // 2), parts[1], axis=1), 3 * CHANNELS // 2)

    def max(self, x: str) -> str:
        return self.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def mean(self, x: str) -> str:
        return self.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def add(self, x: str, other: str) -> str:
        return self.node("Add", x, other)

    def model(self) -> onnx.ModelProto:
        shape = ["batch", CHANNELS, SIDE, SIDE]
        ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in (INPUT, OUTPUT)]
        tensors = [numpy_helper.from_array(value, name) for name, value in self.tensors.items()]
        graph = helper.make_graph(self.nodes, "random", *ends, tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def codes(self, x: np.ndarray) -> Codes:
        """With the ranges that x gives; every second input has a clip value of its own."""
        written = {node.name: node.output[0] for node in self.nodes if node.op_type == "Conv"}
        outputs = dict(zip(self.weights, written.values(), strict=True))
        sums = {node.output[0]: node.input for node in self.nodes if node.op_type == "Add"}
        read = {*self.read.values(), *outputs.values(), *sums, *itertools.chain(*sums.values())}
        wanted = sorted(read - {INPUT})
        found = {INPUT: x, **run_graph(self.model(), wanted, {"input": x}, "none")}
        layers = {}
        for name, (codes, scale) in self.weights.items():
            read, output = found[self.read[name]], found[outputs[name]]
            level = make_grid(activation_role(bool(read.min() < 0)), (8,)).level(8)
            layers[name] = QuantizedLayer(
                codes=codes,
                scale_O=scale,
                input=level.quantizer(float(np.abs(read).max())),
                output=range_quantizer(min(float(output.min()), 0.0), max(float(output.max()), 0.0)),
            )
        level = make_grid("signed", (8,)).level(8)
        adds = {
            name: (level.quantizer(float(np.abs(found[lhs]).max())), level.quantizer(float(np.abs(found[rhs]).max())))
            for name, (lhs, rhs) in sums.items()
        }
        ranged = {name: range_quantizer(min(found[name].min(), 0.0), max(found[name].max(), 0.0)) for name in sums}
        return Codes(layers=layers, adds=adds, sums=ranged)


def kinds(model: onnx.ModelProto, path: Path) -> Counter[str]:
    """Operators of the graph as ONNX Runtime optimizes it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def no_activation_twice(steps: list[str]) -> bool:
    """ONNX Runtime takes one Relu or Clip into a kernel, and networks have no second one behind it."""
    return not any({one, other} <= {"relu", "relu6"} for one, other in itertools.pairwise(steps))


def float_readers(steps: list[str]) -> set[str]:
    """The steps whose function reads a layer's result, which nothing else quantizes."""
    pairs = itertools.pairwise(["conv", *steps])
    return {step for before, step in pairs if step == "se" or (step == "silu" and before in ("conv", "join", "split"))}


@settings(deadline=None, max_examples=15)
@example(steps=["relu6", "shuffle"], seed=0)
@example(steps=["add", "silu"], seed=0)
@example(steps=["relu6", "conv", "join"], seed=0)
@example(steps=["relu", "max", "conv"], seed=0)
@example(steps=["conv", "split"], seed=14)
@example(steps=["relu", "conv", "add"], seed=0)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=6).filter(no_activation_twice), seed=st.integers(0, 99))
def test_all_layers_run_in_integers_and_answers_stay(
    steps: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    network = Network(steps, seed)
    x = np.random.default_rng(seed).standard_normal((8, CHANNELS, SIDE, SIDE)).astype(np.float32)
    codes = network.codes(x)
    plain = quantized_onnx(network.model(), codes, replace(ORT, bias="rounded"), plan_sha256="ab")
    (expected,) = run_graph(plain, [OUTPUT], {"input": x}, "none").values()
    (exact,) = run_graph(network.model(), [OUTPUT], {"input": x}, "none").values()
    noise = rms(expected - exact)  # of the plan's own 8 bits, which chains of layers amplify
    for outputs in ("layers", "all"):
        legal, made = with_quantized_outputs(plain, codes, outputs)  # type: ignore[arg-type]
        (found,) = run_graph(legal, [OUTPUT], {"input": x}, "none").values()
        assert rms(found - expected) < max(3 * noise, 0.08 * rms(expected) + 1e-3)
        after = kinds(legal, tmp_path_factory.mktemp("graph") / "optimized.onnx")
        assert after["QLinearConv"] == len(codes.layers) - 1  # the last one writes the graph's output
        assert made >= len(float_readers(steps))


def test_a_chain_of_layers_and_relus_needs_nothing() -> None:
    network = Network(["relu", "conv", "relu6"], 0)
    x = np.random.default_rng(0).standard_normal((8, CHANNELS, SIDE, SIDE)).astype(np.float32)
    codes = network.codes(x)
    plain = quantized_onnx(network.model(), codes, ORT, plan_sha256="ab")
    for outputs in ("none", "layers", "all"):
        legal, made = with_quantized_outputs(plain, codes, outputs)  # type: ignore[arg-type]
        assert made == 0 and [n.op_type for n in legal.graph.node] == [n.op_type for n in plain.graph.node]


def test_silu_and_squeeze_and_excitation_become_integer_operators(tmp_path: Path) -> None:
    network = Network(["silu", "se", "join"], 0)
    x = np.random.default_rng(0).standard_normal((8, CHANNELS, SIDE, SIDE)).astype(np.float32)
    codes = network.codes(x)
    plain = quantized_onnx(network.model(), codes, ORT, plan_sha256="ab")
    found = kinds(with_quantized_outputs(plain, codes, "all")[0], tmp_path / "optimized.onnx")
    assert (found["QLinearSigmoid"], found["QLinearMul"], found["QLinearConcat"], found["Mul"]) == (2, 2, 1, 0)


def test_a_sum_that_nothing_reads_in_integers_becomes_codes_with_its_range(tmp_path: Path) -> None:
    network = Network(["silu", "conv", "add", "gelu"], 0)
    x = np.random.default_rng(0).standard_normal((8, CHANNELS, SIDE, SIDE)).astype(np.float32)
    codes = network.codes(x)
    plain = quantized_onnx(network.model(), codes, ORT, plan_sha256="ab")
    for sums, count in ((codes.sums, 1), ({}, 0)):  # plans of before the ranges have none
        legal = with_quantized_outputs(plain, replace(codes, sums=sums), "all")[0]
        found = kinds(legal, tmp_path / "optimized.onnx")
        assert (found["QLinearAdd"], found["Add"]) == (count, 1 - count)


def test_ranges_of_outputs_are_kept_in_the_file(tmp_path: Path) -> None:
    network = Network(["silu", "add"], 0)
    codes = network.codes(np.ones((1, CHANNELS, SIDE, SIDE), np.float32))
    some = replace(codes, layers={**codes.layers, "conv1": replace(codes.layers["conv1"], output=None)})
    save_codes(some, tmp_path / "codes.npz")
    read = load_codes(tmp_path / "codes.npz")
    first: Quantizer | None = codes.layers["conv0"].output
    assert first is not None and read.layers["conv0"].output is not None and read.layers["conv1"].output is None
    assert replace(read.layers["conv0"].output, step=first.step) == first
    (name,) = codes.sums
    assert replace(read.sums[name], step=codes.sums[name].step) == codes.sums[name]
    assert read.layers["conv0"].output.step == pytest.approx(first.step, rel=1e-6)
