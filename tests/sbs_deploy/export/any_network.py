"""A network of any structure, its quantizers on, on its way to an ONNX file that ONNX Runtime runs."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import build_engine
from sbs_deploy.backends.spec import Backend, import_problem
from sbs_deploy.export.dialects import DIALECTS, Dialect
from sbs_deploy.export.float_onnx import Names, codes_in, slim_onnx
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_train.contract.config import TrainConfig
from sbs_train.contract.plan import ModelSpec
from sbs_train.example import Example, floats_of, named_outputs
from sbs_train.network.network import Network, build_network
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network
from tests.sbs_deploy.export.networks import NAMES


def quantized_network(model: nn.Module, example: Example) -> Network:
    """The network with 8 bits everywhere and clip values that fit normal inputs, after one step of training."""
    network = build_network(TrainConfig(), model, example, ModelSpec(name="mine"))
    negative = dict.fromkeys(network.layers, False)
    hooks = [
        layer.register_forward_pre_hook(
            lambda m, x, n=name: negative.update({n: negative[n] or bool((x[0] < 0).any())})
        )
        for name, layer in network.layers.items()
    ]
    example.random(4).run(model.eval())
    for hook in hooks:
        hook.remove()
    network.set_grids(negative, [(True, True)] * network.adds.count)
    for layer in network.layers.values():
        layer.set_clips([3.0] * len(layer.grid_w.levels), [4.0] * len(layer.grid_a.levels))
    network.adds.set_clips([(4.0, 4.0)] * network.adds.count)
    optimizer = torch.optim.SGD(network.model.parameters(), lr=1e-3)
    model.train()
    torch.stack([y.square().mean() for y in floats_of(example.random(5).run(model))]).sum().backward()
    optimizer.step()
    network.clamp_clips()
    model.eval()
    return network


def exported(
    network: Network, dialect: Dialect, kept: Mapping[str, list[int]] | None = None, names: Names | None = None
) -> onnx.ModelProto:
    """The Q/DQ graph of a network, frozen as it is."""
    plan = plan_of_network(network, dict(kept or {}))
    apply_plan(network, plan)
    apply_clips(network, plan)
    network.model.eval()
    slim = slim_network(network, plan)
    graph = slim_onnx(slim, network.example, names)
    return quantized_onnx(graph, codes_in(graph, slim.codes), dialect, plan_sha256="")


def engine_details(network: Network, backend: Backend, folder: Path) -> dict[str, Any]:
    """What the manifest says of an engine that a backend builds of the network; skips where it is not installed."""
    if import_problem(backend) is not None:
        pytest.skip(f"needs {backend.name}")
    source = folder / f"model.{backend.dialect}.onnx"
    onnx.save(exported(copy.deepcopy(network), DIALECTS[backend.dialect], names=NAMES), source)
    suffix = "onnx" if backend.name == "onnxruntime" else "engine"
    request = Request(backend=backend, precision="int8")
    return build_engine(source, folder / f"model.int8.{backend.name}.{suffix}", request, made_from={}).details


def outputs_of(model: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Outputs by name, of ONNX Runtime without its own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: x.numpy() for name, x in inputs.items()}), strict=True))


def check(model: onnx.ModelProto, module: nn.Module, example: Example, tolerance: float = 1e-5) -> None:
    """The graph computes what the module does, by the module's names."""
    with torch.no_grad():
        expected = named_outputs(example.run(module))
    found = outputs_of(model, example.named(module))
    assert list(found) == list(expected)
    for name, y in expected.items():
        assert np.abs(found[name] - y.numpy()).max() <= tolerance * float(y.abs().max()), name
