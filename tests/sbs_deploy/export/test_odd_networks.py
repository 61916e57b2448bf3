"""Networks that name, share and write things unusually: what runs in ONNX Runtime is what was trained."""

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.float_onnx import codes_in, slim_onnx
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import ModelSpec
from sbs_train.network.network import build_network
from sbs_train.network.trial import shaken
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network
from tests.sbs_deploy.export.networks import NAMES, SMALL_EXAMPLE, SMALL_INPUT


def conv(channels_in=8, channels=8):
    return nn.Conv2d(channels_in, channels, 3, padding=1)


class Names(nn.Module):
    """Layers and parameters called as parts of a graph are called, or as the quantizers' own state is."""

    def __init__(self):
        super().__init__()
        self.add_module("input", conv(3))
        self.add_module("a:b", conv())
        self.add_module("clip_w", conv())
        self.add_module("weight", nn.Sequential(conv()))
        self.fc = nn.Linear(8, 5)
        for name in ("logits", "clip_a", "weight_scale", "a"):
            self.register_parameter(name, nn.Parameter(torch.ones(1, 8, 1, 1)))
        self.block = nn.Module()
        for name in ("input_scale", "weight_dequantized", "lhs_scale"):
            self.block.register_parameter(name, nn.Parameter(torch.ones(1, 8, 1, 1)))

    def forward(self, x):
        x = torch.relu(self.input(x) * self.logits) * self.clip_a
        x = getattr(self, "a:b")(x) * self.weight_scale + x
        x = self.clip_w(x.relu() * self.block.input_scale) * self.block.weight_dequantized
        return self.fc((self.weight(x) * self.block.lhs_scale).mean((2, 3)))


class Shared(nn.Module):
    """One layer of two names, a plain list, a shared block, a shared BatchNorm, BatchNorms that are not alone."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.twice = conv(3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.c = conv()
        self.named = nn.Sequential(self.c, nn.BatchNorm2d(8))
        self.d, self.e, self.f = conv(), conv(), conv(16, 8)
        self.norm16 = nn.BatchNorm2d(16)
        self.plain = [self.d, self.e]
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())
        self.also = nn.ModuleDict({"block": self.block})
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.named(torch.relu(self.norm(x))) + x
        for layer in self.plain:
            y = torch.relu(self.twice(layer(y)))
        y = self.also["block"](y)
        y = self.f(torch.relu(self.norm16(torch.cat([x, y], 1))))
        return self.fc(y.mean((2, 3)))


def built(model, prune=True):
    model = shaken(model.eval(), SMALL_EXAMPLE)
    network = build_network(TrainConfig(), model, SMALL_EXAMPLE, ModelSpec(name="x.py:f"))
    network.set_grids(dict.fromkeys(network.layers, True), [(True, True)] * network.adds.count)
    with torch.no_grad():
        for layer in network.layers.values():
            layer.clip_w.fill_(3)
            layer.clip_a.fill_(8)
        network.adds.clip_lhs.fill_(8)
        network.adds.clip_rhs.fill_(8)
    groups = [group for group in network.topology.groups if group.prunable and prune]
    plan = plan_of_network(network, {group.id: list(range(0, group.size, 2)) for group in groups})
    apply_plan(network, plan)
    apply_clips(network, plan)
    network.model.eval()
    return network, plan


def check_export(network, plan):
    x = torch.randn(3, 3, SMALL_INPUT.height, SMALL_INPUT.width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = network.model(x).numpy()
    slim = slim_network(network, plan)
    graph = slim_onnx(slim, network.example, NAMES)
    codes = codes_in(graph, slim.codes)
    for dialect in (ORT, TRT):
        model = quantized_onnx(graph, codes, dialect, plan_sha256="")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        (found,) = session.run(["logits"], {"input": x.numpy()})
        # A value half-way between two codes may round either way.
        assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max(), dialect.name
    return codes


def test_names_do_not_collide():
    network, plan = built(Names())
    groups = [group.id for group in network.topology.groups]
    assert len(groups) == len(set(groups)) and network.topology.layers["input"].group_in == ".input"
    assert {name for name, _ in Names().named_parameters()} == set(network.float_state())
    assert len(check_export(network, plan).layers) == 5


def test_modules_of_several_names_and_batchnorms_that_are_not_alone():
    network, plan = built(Shared())
    assert set(network.float_state()) == set(Shared().state_dict())
    assert network.batchnorms == {"c": "named.1", "block.0": "block.1"}
    assert len(check_export(network, plan).layers) == 7
