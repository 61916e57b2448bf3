"""TensorRT 10, TensorRT 11 and TensorRT-RTX as one backend, the module chosen by name."""

import importlib.metadata
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import onnx

from sbs_deploy.backends.base import ForAnotherMachine
from sbs_deploy.backends.request import RTX_COMPUTE_CAPABILITIES, Request, built_with, check_settings
from sbs_deploy.backends.spec import TENSORRT_RTX, Backend, require_module
from sbs_deploy.backends.tensorrt.build import engine_from_onnx
from sbs_deploy.backends.tensorrt.config import TimingCache
from sbs_deploy.backends.tensorrt.device import open_device
from sbs_deploy.backends.tensorrt.engine import TensorRTEngine
from sbs_deploy.backends.tensorrt.fits import engine_problem
from sbs_deploy.backends.tensorrt.plan_text import low_precision_convolutions
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.names import FloatArray
from sbs_deploy.graph.quantized import quantized_layers
from sbs_deploy.machine.hardware import Hardware, this_hardware
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest

FP8_CHIPS = ("SM89", "SM120")


class TensorRT:
    """Answers of `backends.runtime.Runtime`."""

    suffix: Literal["onnx", "engine"] = "engine"

    def depends_on(self, request: Request) -> dict[str, str]:
        """Everything that was asked for, and the GPU where the engine is built for that."""
        check_settings(request.settings, request.backend)
        return {
            "settings": rundir.hash_of(_asked(request)),
            "hardware": rundir.hash_of(_hardware(request.backend).as_json()),
        }

    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """A strongly typed engine, none of whose INT8 layers is in float."""
        trt, asked = require_module(request.backend), _asked(request)
        model = load_onnx(source)
        built = engine_from_onnx(
            trt,
            model.SerializeToString(),
            str(source),
            request.profile,
            asked["compute_capabilities"],
            request.settings,
            TimingCache(request.timing_cache),
        )
        quantized = quantized_layers(model)
        found = low_precision_convolutions(built.plan, quantized) if quantized else []
        left = None if found is None else [name for name in quantized if name not in found]
        # FP8 on operands that it computes in FP16 (large filters over an image) is still the graph that was asked for.
        if left and (request.precision == "int8" or len(left) == len(quantized)):
            raise SbsError(
                f"{request.backend.name} put {', '.join(left)} in float: the engine would not be {request.precision}; "
                f"report the model"
            )
        temporary.write_bytes(built.plan)
        return {
            **asked,
            "hardware": _hardware(request.backend).as_json(),
            "shapes": built.shapes,
            "flags": ["STRONGLY_TYPED", *built.flags],
            "quantized_layers": len(quantized),
            "float_layers": left,
            "onnx_version": importlib.metadata.version("onnx"),
        }

    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> TensorRTEngine:
        """A deserialized engine on this GPU."""
        return TensorRTEngine(path, backend=backend, precision=precision)

    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """By version, chip and GPU."""
        module = require_module(backend)
        problem = engine_problem(
            manifest.details, manifest.versions, module.__name__, module.__version__, this_hardware()
        )
        if problem is not None:
            raise ForAnotherMachine(f"{path.name} cannot run: {problem}; run `{command}` here")

    def require_device(self, backend: Backend) -> None:
        """A GPU, and what opens it."""
        with open_device():
            pass

    def outputs(self, model: onnx.ModelProto, images: FloatArray, request: Request) -> Mapping[str, FloatArray]:
        """Of an engine that lives as long as this call."""
        trt, chips = require_module(request.backend), _asked(request)["compute_capabilities"]
        name = "the graph with its layers as outputs"
        built = engine_from_onnx(trt, model.SerializeToString(), name, request.profile, chips, request.settings)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layers.engine"
            path.write_bytes(built.plan)
            with TensorRTEngine(path, backend=request.backend, precision=request.precision, cuda_graph=False) as engine:
                return engine.outputs(images)

    def request_like(self, backend: Backend, precision: str, details: Mapping[str, Any]) -> Request:
        """With its batch sizes, settings and chips; a timing cache would repeat the choices of the first build."""
        if not details:  # the engine has a damaged manifest, which its own row says
            return Request(backend=backend, precision=precision)
        profile, settings = built_with(details, f"the engine for {backend.label}")
        chips = tuple(details.get("compute_capabilities") or RTX_COMPUTE_CAPABILITIES)
        return Request(
            backend=backend, precision=precision, profile=profile, settings=settings, compute_capabilities=chips
        )


RUNTIME = TensorRT()


def _asked(request: Request) -> dict[str, Any]:
    """What an engine's manifest says of the request."""
    chips = request.compute_capabilities if request.backend is TENSORRT_RTX else ()
    return {
        "precision": request.precision,
        "profile": asdict(request.profile),
        "compute_capabilities": [name for name in chips if request.precision != "fp8" or name in FP8_CHIPS],
        "settings": request.settings.as_json(),
    }


def _hardware(backend: Backend) -> Hardware:
    return this_hardware() if backend.build_needs_gpu else Hardware()
