"""What is asked of every backend. No other module asks which backend it is: each answers in a module of its own."""

import abc
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import onnx

from sbs_deploy.backends.base import BuiltEngine, Engine
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.spec import Backend, require_module
from sbs_deploy.graph.names import FloatArray
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


class Runtime(abc.ABC):
    """One backend; what is not abstract suits a backend that runs ONNX files and has no settings."""

    suffix: ClassVar[Literal["onnx", "engine"]] = "onnx"
    """Ending of its files. `onnx`: it also runs ONNX files as they are; `engine`: it has to build what it runs."""

    @abc.abstractmethod
    def depends_on(self, request: Request) -> dict[str, str]:
        """Hashes of what an engine depends on besides its graph and the version: machine, device, settings.

        Raises:
            SbsError: the backend cannot do what is asked for, here or at all.
        """

    @abc.abstractmethod
    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """Write the engine of `source` to `temporary`, to be called `destination`; details for its manifest.

        Raises:
            SbsError: the graph is damaged or refused, in the backend's words, or runs in float where it should not.
        """

    @abc.abstractmethod
    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> Engine:
        """The file on the backend; `built` engines come with a directory of what was compiled.

        Raises:
            SbsError: the backend is not installed or has no device here, or the file is damaged.
        """

    @abc.abstractmethod
    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """Refuse an engine of another processor, device or version, with the command that builds it again.

        Raises:
            ForAnotherMachine: names the difference.
        """

    def require_device(self, backend: Backend) -> None:  # noqa: B027  # a session says itself what is missing
        """Do nothing where an engine could run here.

        Raises:
            SbsError: says what is missing.
        """

    def outputs(self, model: onnx.ModelProto, images: FloatArray, request: Request) -> Mapping[str, FloatArray]:
        """All outputs of a graph for images (N, C, H, W), on an engine built for that alone.

        Raises:
            SbsError: the backend refuses the graph, or does not show what is inside.
        """
        raise SbsError(f"{request.backend.name} does not show what is inside an engine")

    def request_like(self, backend: Backend, precision: str, details: Mapping[str, Any]) -> Request:
        """A request for another engine as an engine with these details was built; empty details: the usual one.

        Raises:
            SbsError: the details are damaged.
        """
        return Request(backend=backend, precision=precision)


def runtime_of(backend: Backend) -> Runtime:
    """The backend's module, imported when it is needed: what it stands on may not be installed."""
    return cast(Runtime, importlib.import_module(f"{__package__}.{backend.runtime}.runtime").RUNTIME)


def build_engine(
    source: Path,
    destination: Path,
    request: Request,
    *,
    made_from: Mapping[str, str],
    legal: Mapping[str, Any] | None = None,
) -> BuiltEngine:
    """Build an engine and write it with its manifest; one that is current is left alone.

    Args:
        source: a graph as the backend executes it; every type is in it.
        made_from: hashes of what `source` was made from, the plan's among them.
        legal: what was done to the plan's graph for this backend, for the manifest.

    Raises:
        SbsError: the backend is missing, refuses the graph or this machine, or leaves a layer in float.
    """
    runtime, version = runtime_of(request.backend), str(require_module(request.backend).__version__)
    inputs = {
        **made_from,
        source.name: rundir.sha256_of(source),
        **runtime.depends_on(request),
        request.backend.module: version,
    }
    if rundir.is_current(destination, inputs):
        return BuiltEngine(path=destination, skipped=True, details=rundir.read_manifest(destination).details)
    began = time.perf_counter()
    with rundir.atomic_path(destination) as temporary:
        found = runtime.write(source, temporary, destination, request)
    details = {
        "precision": request.precision,
        "backend": request.backend.label,
        "legal": dict(legal or {}),
        **found,
        "build_seconds": round(time.perf_counter() - began, 3),
    }
    rundir.write_manifest(destination, inputs, versions={request.backend.module: version}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


def open_engine(path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> Engine:
    """An engine of a file, see `Runtime.load`."""
    return runtime_of(backend).load(path, backend, precision, threads, built=built)
