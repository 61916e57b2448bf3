"""Networks and engines of the benchmarks on a CPU: float, INT8 by two tools, and pruned.

Weights are torchvision's random ones, with BatchNorm statistics estimated from pictures: latency does not depend on
what a network has learned, and no pretrained weights have to be downloaded.
"""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image
from torch import nn

from sbs_deploy import cli as deploy
from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings
from sbs_deploy.backends.openvino.engine import OpenVinoEngine, core_of
from sbs_deploy.export.dialects import ORT
from sbs_deploy.export.float_onnx import slim_onnx
from sbs_deploy.export.pipeline import export_run
from sbs_deploy.export.qdq import quantized_onnx
from sbs_deploy.export.slim import slim_network
from sbs_deploy.graph.model_file import save_onnx
from sbs_deploy.machine import clocks
from sbs_train.contract.config import (
    CalibrateConfig,
    FinetuneConfig,
    PretrainConfig,
    SearchConfig,
    TrainConfig,
    load_config,
    save_config,
)
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import ModelSpec, Plan, save_plan
from sbs_train.contract.rundir import RunDir
from sbs_train.contract.trust import is_code
from sbs_train.inputs.data import dataset_of
from sbs_train.inputs.models import build_model
from sbs_train.stages.integers import snap_biases
from sbs_train.stages.plans import apply_clips
from sbs_train.stages.rule import freeze
from sbs_train.stages.train import train
from sbs_train.stages.weights import restore, save_weights

ENGINES = ("onnxruntime", "openvino")
CLASSES = 1000
IMAGE = 224
BATCH, BATCHES = 16, 2
"""Images that both tools estimate ranges from."""
PLANNED = ("--placement", "plan")
"""Flags of `sbs-deploy build` that keep every layer at the plan's bits, whatever is faster."""


def machine() -> str:
    """Date, processor and load, as the first line of a page."""
    state = clocks.machine_state()
    flags = " ".join(state.vector_flags)
    return f"{date.today().isoformat()} · {state.cpu}, {state.cores} cores ({flags}), load {state.load_average_1min}"


def open_engine(
    name: str, path: Path, precision: str, *, float_model: Path | None = None, exact: bool = True
) -> Engine:
    """A file in one of ENGINES, on one thread.

    Args:
        path: an ONNX file, or with OpenVINO its own format (.xml).
        float_model: the ONNX file that an .xml was made from.
        exact: as in `SessionSettings`.
    """
    if path.suffix == ".xml":
        assert float_model is not None
        engine = OpenVinoEngine(float_model, precision=precision)
        engine._model = core_of(openvino).read_model(path)
        return engine
    if name == "openvino":
        return OpenVinoEngine(path, precision=precision)
    return OnnxRuntimeEngine(path, SessionSettings(precision=precision, exact=exact))


def make_run(name: str, folder: Path) -> RunDir:
    """An exported run of a network (torchvision's, or timm:NAME), all at 8 bits; what is current is left alone."""
    library, _, name = name.rpartition(":")
    images = folder / "images"
    if not images.is_dir():
        write_images(images)
    config = TrainConfig(
        model=f"{library or 'torchvision'}:{name}",
        data=f"folder:{images}",
        image_size=IMAGE,
        target="1x",
        weights=folder / f"{name}.safetensors",
        batch_size=BATCH,
        workers=0,
        device="cpu",
        pretrain=PretrainConfig(epochs=0),
        calibrate=CalibrateConfig(batches=BATCHES),
        search=SearchConfig(epochs=0, prune="coupled"),
        finetune=FinetuneConfig(epochs=0),
    )
    assert config.weights is not None
    if not config.weights.is_file():
        save_weights(float_model(config).state_dict(), config.weights)
    run = train(config, folder / name).run
    export_run(run, progress=_to_stderr)
    return run


def built(run: RunDir, backend: str, *flags: str) -> Path:
    """The INT8 engine that `sbs-deploy build` makes of a run, with more of its flags."""
    model, said = load_config(run.config).model, io.StringIO()
    trusted = ["--model", model] if is_code(model) else []
    arguments = ["build", str(run.root), "--engine", "int8", "--backend", backend, "--json", *trusted, *flags]
    with contextlib.redirect_stdout(said):
        code = deploy.main(arguments)
    if code:
        raise SbsError(f"sbs-deploy {' '.join(arguments)} ended with exit code {code}")
    return Path(json.loads(said.getvalue().splitlines()[-1])["engine"])


def write_plan(run: RunDir, destination: RunDir, bits_w: Any, bits_a: Any, kept: Any) -> Plan:
    """Freeze the network of `run` to a plan and write its config.json, plan.json and model.ort.onnx; the plan.

    Args:
        bits_w, bits_a: bits of weights and inputs by layer; others keep those of `run`.
        kept: indices of the kept channels by group; others keep all.
    """
    network, _ = restore(run)
    plan = freeze(network, bits_w, bits_a, kept)
    apply_clips(network, plan)
    snap_biases(network, plan)
    slim = slim_network(network, plan)
    model = quantized_onnx(slim_onnx(slim, network.example), slim.codes, ORT, plan_sha256="benchmark")
    destination.deploy.mkdir(parents=True, exist_ok=True)
    save_config(network.config, destination.config)
    save_plan(plan, destination.plan)
    save_onnx(model, destination.model_ort)
    return plan


def make_peer(source: Path, images: Path, destination: Path) -> None:
    """Write what onnxruntime's quantize_static makes of a float model, unless it is there.

    Its own preparation, uint8 activations, int8 weights per channel.

    Args:
        images: golden.npz of a network with one input (N, C, H, W), to estimate ranges from.
    """
    if destination.is_file():
        return
    prepared = destination.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    name, inputs = golden_input(images)
    reader = Images(name, inputs[: BATCH * BATCHES])
    quantize_static(
        str(prepared),
        str(destination),
        reader,
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def golden_input(path: Path) -> tuple[str, np.ndarray]:
    """Name and samples of the only input in golden.npz."""
    prefix = "input/"
    with np.load(path) as arrays:
        (key,) = [key for key in arrays if key.startswith(prefix)]
        return key.removeprefix(prefix), arrays[key]


class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Images (N, C, H, W), one at a time, as quantize_static asks for them."""

    def __init__(self, name: str, inputs_NCHW: np.ndarray) -> None:
        self._name = name
        self._left: Iterator[np.ndarray] = iter(inputs_NCHW[:, None])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, or None behind the last."""
        image = next(self._left, None)
        return None if image is None else {self._name: image}


@torch.no_grad()
def float_model(config: TrainConfig) -> nn.Module:
    """The network with random weights and the BatchNorm statistics of some batches."""
    model = build_model(
        ModelSpec(name=config.model, arguments={"width": config.width, "num_classes": CLASSES}), 3, config.seed
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            module.reset_running_stats()
    data = dataset_of(config)
    model.train()
    for x_NCHW, _ in data.train_batches(BATCH, seed=0, steps=BATCHES):
        model(x_NCHW)
    return model.eval()


def write_images(directory: Path) -> None:
    """Smooth noise as an image folder: one picture of each class to train on, a few to test with."""
    rng = np.random.default_rng(0)
    names = [f"train/{label:04}/0.png" for label in range(CLASSES)] + [f"val/0000/{i}.png" for i in range(BATCH * 2)]
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).resize((IMAGE, IMAGE)).save(path)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
