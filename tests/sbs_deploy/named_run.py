"""An exported run of a network at hand with several inputs and outputs, which no name can build."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from sbs_deploy.archive import INDEX
from sbs_deploy.export.codes import save_codes
from sbs_deploy.export.dialects import ORT, TRT
from sbs_deploy.export.float_onnx import codes_in, onnx_from_module, slim_onnx
from sbs_deploy.export.golden import golden_arrays
from sbs_deploy.export.pipeline import FORMAT
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_deploy.graph.model_file import save_onnx
from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, save_config
from sbs_train.contract.plan import ModelSpec, Plan, TensorSpec, save_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.example import Example
from sbs_train.network.network import Network, build_network
from sbs_train.quant.folding import plain_copy
from sbs_train.stages.integers import snap_biases
from sbs_train.stages.plans import apply_clips, apply_plan, plan_of_network


class Mixed(nn.Module):
    """An image and one word of each sample in; a feature map, its channels last, a number and a class of each sample
    out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 16, 3, padding=1)
        self.words = nn.Embedding(7, 16)
        self.wide, self.head = nn.Linear(16, 24), nn.Linear(24, 1)

    def forward(self, image: Tensor, word: Tensor) -> dict[str, Tensor]:
        map_NCHW = torch.relu(self.body(torch.relu(self.stem(image))))
        x = map_NCHW.mean((2, 3)) + self.words(word)
        number = self.head(torch.relu(self.wide(x)))[:, 0]
        return {
            "map": map_NCHW,
            "last": map_NCHW.permute(0, 2, 3, 1),
            "number": number,
            "which": x.argmax(1),
            "large": number > 0,
        }


def mixed_example(samples: int = 2, size: int = 8) -> Example:
    """Inputs of `Mixed`."""
    generator = torch.Generator().manual_seed(samples)
    images = torch.randn(samples, 3, size, size, generator=generator)
    return Example.of({"image": images, "word": torch.randint(0, 7, (samples,), generator=generator)})


def planned(
    model: nn.Module, example: Example, dynamic: dict[str, dict[int, str]] | None = None
) -> tuple[Network, Plan]:
    """A network of 8 bits with some channels pruned, and its plan."""
    network = build_network(TrainConfig(), model, example, ModelSpec(name="at hand"))
    network.set_grids(dict.fromkeys(network.layers, True), [(True, True)] * network.adds.count)
    for layer in network.layers.values():
        layer.set_clips([1.5] * 3, [4.0] * 3)
        layer.set_bits(8, 8)
    if network.adds.count:
        network.adds.set_clips([(4.0, 4.0)] * network.adds.count)
    kept = {group.id: list(range(0, group.size, 2)) for group in network.topology.groups if group.prunable}
    plan = plan_of_network(network, kept)
    apply_plan(network, plan)
    apply_clips(network, plan)
    snap_biases(network, plan)
    network.model.eval()
    return network, plan


def opened(spec: TensorSpec, names: dict[int, str]) -> TensorSpec:
    """The tensor with axes of open size."""
    return spec.model_copy(update={"shape": [names.get(axis, size) for axis, size in enumerate(spec.shape)]})


def make_named_run(
    root: Path,
    model: nn.Module,
    example: Example,
    batches: Iterable[tuple[Example, Tensor | None]],
    dynamic: dict[str, dict[int, str]] | None = None,
) -> RunDir:
    """The files of an export, as a device finds them in a bundle."""
    run = rundir.create_run(root)
    run.deploy.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network, plan = planned(model, example)
    save_config(TrainConfig(), run.config)
    save_onnx(onnx_from_module(plain_copy(network.model), example, dynamic=dynamic), run.model_fp32)
    slim = slim_network(network, plan)
    graph = slim_onnx(slim, example, dynamic=dynamic)
    save_onnx(graph, run.model_slim)
    codes = codes_in(graph, slim.codes)
    save_codes(codes, run.codes)
    plan = (
        plan.model_copy(
            update={
                "inputs": [opened(spec, dynamic.get(spec.name, {})) for spec in plan.inputs],
                "outputs": [
                    opened(spec, {2: "height", 3: "width"} if spec.name == "map" else {}) for spec in plan.outputs
                ],
            }
        )
        if dynamic
        else plan
    )
    save_plan(plan, run.plan)
    golden_arrays(network, plan, batches).save(run.golden)
    sha256 = rundir.sha256_of(run.plan)
    for dialect, path in ((TRT, run.model_trt), (ORT, run.model_ort)):
        save_onnx(quantized_onnx(graph, codes, dialect, plan_sha256=sha256), path)
    trained = {"format": FORMAT, run.plan.name: sha256}
    for path in (run.model_fp32, run.codes, run.model_slim, run.golden, run.model_trt, run.model_ort):
        rundir.write_manifest(path, trained)
    (run.root / INDEX).write_text("{}")  # nothing is exported again
    return run
