"""OpenVINO as a backend: an ONNX file with OpenVINO's compiled code, its layers in float named.

The engine is the ONNX file itself, with a directory of compiled code beside it: code for another version, device or
setting is compiled again.
"""

import shutil
from pathlib import Path
from typing import Any

import onnx

from sbs_deploy.backends.base import cache_of, check_built_for
from sbs_deploy.backends.openvino.engine import OpenVinoEngine, core_of, device_name, words
from sbs_deploy.backends.products import pairs_saturate, saturating_layers
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import Runtime
from sbs_deploy.backends.spec import DEFAULT_BACKEND, OPENVINO, Backend, require_module
from sbs_deploy.graph.arrays import Named, noise
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.quantized import layer_counts, quantized_layers
from sbs_deploy.graph.run import can_run, largest_difference, outputs_of
from sbs_deploy.machine import clocks
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


class OpenVino(Runtime):
    """OpenVINO on a CPU, an Intel GPU or an NPU."""

    def depends_on(self, request: Request) -> dict[str, str]:
        """Hash of the device's full name and of the instruction sets that oneDNN, which OpenVINO runs on, may use."""
        device = request.backend.device
        return {"device": rundir.hash_of([device, device_name(device), clocks.onednn_limit()])}

    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """Write a copy of `source`, and compile it once, which fills the directory and tests the model."""
        device, cache = request.backend.device, cache_of(destination)
        model = load_onnx(source)
        _require_readable(source)
        shutil.rmtree(cache, ignore_errors=True)
        temporary.write_bytes(source.read_bytes())
        with OpenVinoEngine(temporary, precision=request.precision, device=device, cache=cache) as engine:
            inputs = noise(engine.inputs, 1, request.usual_sizes)
            outputs = engine.run(inputs)
            integer = engine.integer_layers()
        if integer is not None:
            integer |= {node.name for node in model.graph.node if not integer.isdisjoint(node.output)}
        counts = layer_counts(quantized_layers(model), integer)
        details: dict[str, Any] = {
            **counts,
            "device": device,
            "device_name": device_name(device),
            "max_abs_diff_to_source": _difference(model, inputs, outputs),
        }
        if device == OPENVINO.device and pairs_saturate():
            details["saturating_layers"] = [node.name for node in saturating_layers(model)]
        return details

    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> OpenVinoEngine:
        """Open the file as a model that is compiled for the shapes of its inputs."""
        kept = cache_of(path) if built else None
        return OpenVinoEngine(path, precision=precision, device=backend.device, threads=threads, cache=kept)

    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """Compare the manifest with this device and the version of OpenVINO."""
        version = {backend.module: str(require_module(backend).__version__)}
        check_built_for(path, manifest, {"device_name": device_name(backend.device)} | version, command)


RUNTIME = OpenVino()


def _require_readable(source: Path) -> None:
    """Refuse a valid graph that OpenVINO does not support; another build would not help.

    Raises:
        SbsError: an operator is missing in OpenVINO, such as padding that wraps around.
    """
    try:
        core_of(require_module(OPENVINO)).read_model(source.read_bytes(), b"")
    except RuntimeError as error:
        raise SbsError(
            f"OpenVINO cannot run {source.name}, which is sound (circular padding is one thing it lacks); use "
            f"{DEFAULT_BACKEND.flags} or tensorrt-rtx (its words: {words(error)})"
        ) from error


def _difference(model: onnx.ModelProto, inputs: Named, outputs: Named) -> float | None:
    """Largest difference to the graph computed node by node; None where graph/run.py cannot run."""
    return largest_difference(outputs, outputs_of(model, inputs)) if can_run() else None
