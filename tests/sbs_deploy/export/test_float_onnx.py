"""A small MobileNetV2 with pruned channels, from torch to engines; nothing is trained, so nothing takes minutes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from sbs_deploy.backends.onnxruntime.engine import SessionSettings, make_session
from sbs_deploy.backends.request import BatchProfile, Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import ONNXRUNTIME, TENSORRT_RTX, import_problem
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.float_onnx import onnx_from_module, slim_onnx
from sbs_deploy.export.golden import tapped
from sbs_deploy.export.golden_file import GoldenArrays
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import SlimNetwork, slim_network
from sbs_deploy.graph.arrays import input_specs, output_specs
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.graph.run import Optimization
from sbs_deploy.validate.divergence import first_divergence
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import Plan
from sbs_train.example import Example
from sbs_train.network.network import Network
from sbs_train.stages.integers import snap_biases
from tests.sbs_deploy.export.networks import NAMES, SMALL_EXAMPLE, SMALL_INPUT, MobileNet, random_network
from tests.sbs_deploy.export.quantized import run_quantized

IMAGES = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Exported:
    """The network and its files."""

    def __init__(self, folder: Path) -> None:
        config = TrainConfig(model="resnet20", width=4)
        self.network: Network
        self.plan: Plan
        self.network, self.plan = random_network(MobileNet(5), 2, bits=(4, 8), config=config, input=SMALL_INPUT)
        snap_biases(self.network, self.plan)
        self.slim: SlimNetwork = slim_network(self.network, self.plan)
        graph = onnx_from_module(self.slim.model, SMALL_EXAMPLE, self.slim.codes.layers, self.slim.places, names=NAMES)
        self.paths = {}
        for dialect in (TRT, ORT):
            self.paths[dialect.name] = folder / f"{dialect.name}.onnx"
            quantized = quantized_onnx(graph, self.slim.codes, dialect, plan_sha256="ab")
            save_onnx(quantized, self.paths[dialect.name])


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("mobilenet"))


def logits(path: Path, optimization: Optimization = "none") -> np.ndarray:
    return make_session(path, SessionSettings(optimization=optimization)).run(None, {"input": IMAGES.numpy()})[0]


def test_depthwise_layers_are_pruned_with_their_neighbours(mobilenet: Exported) -> None:
    shapes = {t.name: list(t.dims) for t in onnx.load(mobilenet.paths["ort"]).graph.initializer}
    pruned = 0
    for row in mobilenet.plan.layers:
        inputs = 1 if row.kind == "depthwise" else row.kept_in
        assert shapes[f"{row.name}.weight"][:2] == [row.kept_out, inputs]
        pruned += row.kind == "depthwise" and row.kept_out < mobilenet.plan.group(row.group_out).size
    assert pruned == 3
    groups = {n.name: n.attribute for n in onnx.load(mobilenet.paths["ort"]).graph.node if n.op_type == "Conv"}
    for row in mobilenet.plan.layers:
        if row.kind == "depthwise":
            assert next(a.i for a in groups[row.name] if a.name == "group") == row.kept_out


@pytest.mark.parametrize(("dialect", "optimization"), [("trt", "none"), ("ort", "none"), ("ort", "all")])
def test_both_dialects_compute_what_torch_does(mobilenet: Exported, dialect: str, optimization: Optimization) -> None:
    with torch.no_grad():
        expected = mobilenet.network.model(IMAGES)
        torch.testing.assert_close(run_quantized(mobilenet.slim, IMAGES), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits(mobilenet.paths[dialect], optimization), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_no_relu6_is_left_in_float_for_onnxruntime(mobilenet: Exported, tmp_path: Path) -> None:
    model = onnx.load(mobilenet.paths["ort"])
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    clips = [n for n in model.graph.node if n.op_type == "Clip"]
    assert clips and all(arrays[n.input[1]].dtype == np.uint8 for n in clips)
    request = Request(backend=ONNXRUNTIME, precision="int8")
    built = build_engine(mobilenet.paths["ort"], tmp_path / "engine.onnx", request, made_from={"plan.json": "ab"})
    assert len(built.details["float_layers"]) <= 2


@pytest.mark.skipif(import_problem(TENSORRT_RTX) is not None, reason="needs tensorrt-rtx")
def test_tensorrt_rtx_runs_every_layer_in_int8(mobilenet: Exported, tmp_path: Path) -> None:
    request = Request(backend=TENSORRT_RTX, precision="int8", profile=BatchProfile(opt=1, max=8))
    built = build_engine(mobilenet.paths["trt"], tmp_path / "model.engine", request, made_from={})
    assert built.details["quantized_layers"] == len(mobilenet.plan.layers)
    assert built.details["float_layers"] in ([], None)  # None: the plan's text is not recognised


class Swin(nn.Module):
    """Linear layers over (N, H, W, C), with fewer rows than channels, the middle ones pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NHWC = self.patches(x_NCHW).permute(0, 2, 3, 1)
        x_NHWC = x_NHWC + self.fc2(torch.nn.functional.gelu(self.fc1(self.norm(x_NHWC))))
        logits: torch.Tensor = self.head(x_NHWC.mean((1, 2)))
        return logits


def test_taps_of_linear_layers_over_feature_maps_are_of_channels() -> None:
    network, plan = random_network(Swin(), 5, bits=(8,), config=TrainConfig(), input=SMALL_INPUT)
    kept = {row.name: row.kept_out for row in plan.layers}
    assert kept["fc1"] < 32, "pruned"
    taps = tapped(network, plan, Example.of(IMAGES[:2]))
    assert {name: tuple(tap.shape) for name, tap in taps.items()} == {
        "patches": (2, 16, 3, 3),
        "fc1": (2, 3, 3, kept["fc1"]),
        "fc2": (2, 3, 3, 16),
        "head": (2, 5),
    }
    slim = slim_network(network, plan)
    model = quantized_onnx(slim_onnx(slim, SMALL_EXAMPLE, NAMES), slim.codes, TRT, plan_sha256="ab")
    golden = GoldenArrays(
        input_specs=input_specs(model),
        output_specs=output_specs(model),
        inputs={"input": IMAGES[:2].numpy()},
        outputs={},
        taps={name: tap.numpy() for name, tap in taps.items()},
    )
    assert first_divergence(model, golden) is None
    golden.taps["fc1"] = golden.taps["fc1"][..., ::-1]
    assert first_divergence(model, golden) == "fc1"
