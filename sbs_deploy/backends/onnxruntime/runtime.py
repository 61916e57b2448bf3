"""ONNX Runtime as a backend: the optimized model as an engine, its layers in float named.

On a CPU the engine is the optimized graph, whose kernels are chosen for this processor. On a GPU the engine is the
exported graph, and the provider keeps compiled code in a directory beside the engine.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from sbs_deploy.backends.base import cache_of, check_built_for
from sbs_deploy.backends.onnxruntime.engine import OnnxRuntimeEngine, SessionSettings, make_session
from sbs_deploy.backends.onnxruntime.profile import integer_layers
from sbs_deploy.backends.onnxruntime.providers import CPU, Provider, provider_of, under_its_name
from sbs_deploy.backends.products import pairs_saturate, saturating_layers
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.runtime import Runtime
from sbs_deploy.backends.spec import Backend, require_module
from sbs_deploy.graph.arrays import noise
from sbs_deploy.graph.model_file import load_onnx
from sbs_deploy.graph.quantized import layer_counts, quantized_layers
from sbs_deploy.graph.run import largest_difference
from sbs_deploy.machine import clocks
from sbs_train.contract import rundir
from sbs_train.contract.rundir import Manifest


class OnnxRuntime(Runtime):
    """ONNX Runtime on a CPU, or on a GPU by one of its execution providers."""

    def depends_on(self, request: Request) -> dict[str, str]:
        """Hashes of the processor and its instruction sets, or of the GPU."""
        here = machine(provider_of(request.backend))
        return {"machine": rundir.hash_of([here, list(clocks.vector_flags())])}

    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """Write the graph that ONNX Runtime optimized from `source`, or on a GPU `source` itself."""
        provider = provider_of(request.backend)
        model = load_onnx(source)
        shutil.rmtree(cache_of(destination), ignore_errors=True)
        if provider is CPU:
            make_session(source, save_to=temporary)
        else:
            temporary.write_bytes(source.read_bytes())
        quantized = quantized_layers(model)
        integer = integer_layers(onnx.load(temporary), quantized) if provider is CPU else None
        with under_its_name(temporary, destination) as engine:
            cache = None if provider is CPU else cache_of(destination)
            settings = SessionSettings(precision=request.precision, provider=provider, cache=cache)
            difference = _difference(source, engine, settings, request.usual_sizes)
        details = {
            **layer_counts(quantized, integer),
            **machine(provider),
            "providers": [provider.ep],
            "max_abs_diff_to_source": difference,
        }
        if provider is CPU:
            details["exact_products"] = [node.name for node in saturating_layers(model)] if pairs_saturate() else []
        return details

    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> OnnxRuntimeEngine:
        """Open the file in a session."""
        provider = provider_of(backend)
        cache = cache_of(path) if built and provider is not CPU else None
        settings = SessionSettings(precision=precision, threads=threads, provider=provider, cache=cache)
        return OnnxRuntimeEngine(path, settings)

    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """Compare the manifest with this processor or GPU and the version of ONNX Runtime."""
        version = {backend.module: str(require_module(backend).__version__)}
        check_built_for(path, manifest, machine(provider_of(backend)) | version, command)


RUNTIME = OnnxRuntime()


def machine(provider: Provider) -> dict[str, str]:
    """The processor or the GPU that an engine is built for, by the manifest's name."""
    return {"processor": clocks.cpu_model()} if provider is CPU else {"gpu": clocks.gpu_name() or "none"}


def _difference(source: Path, engine: Path, settings: SessionSettings, sizes: Mapping[str, int]) -> float:
    """Largest difference of the engine to its source, computed node by node, on noise; also a test run."""
    with (
        OnnxRuntimeEngine(source, SessionSettings(optimization="none")) as plain,
        OnnxRuntimeEngine(engine, settings) as optimized,
    ):
        inputs = noise(plain.inputs, 2, sizes)
        return largest_difference(optimized.run(inputs), plain.run(inputs))
