"""The interface of all backends. Each implements it in its own module; no other module asks which backend it has."""

import abc
import contextlib
import importlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import onnx

from sbs_deploy.backends.base import BuiltEngine, Engine
from sbs_deploy.backends.request import Request
from sbs_deploy.backends.spec import Backend, require_module
from sbs_deploy.graph.arrays import Named
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest


class Runtime(abc.ABC):
    """One backend; methods that are not abstract suit a backend that runs ONNX files and has no settings."""

    suffix: ClassVar[Literal["onnx", "engine"]] = "onnx"
    """Suffix of the backend's files. `onnx`: it also runs ONNX files directly; `engine`: it must build engines."""

    @abc.abstractmethod
    def depends_on(self, request: Request) -> dict[str, str]:
        """Hashes of an engine's inputs besides its graph and the version: machine, device, settings.

        Raises:
            SbsError: the backend cannot fulfil the request, here or at all.
        """

    @abc.abstractmethod
    def write(self, source: Path, temporary: Path, destination: Path, request: Request) -> dict[str, Any]:
        """Write the engine of `source` to `temporary`, later renamed `destination`; returns details for its manifest.

        Raises:
            SbsError: the graph is damaged or refused, in the backend's words, or runs in float where it should not.
        """

    @abc.abstractmethod
    def load(self, path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> Engine:
        """Load the file on the backend; `built` engines have a directory of compiled code.

        Raises:
            SbsError: the backend is not installed or has no device here, or the file is damaged.
        """

    @abc.abstractmethod
    def check_fits(self, path: Path, manifest: Manifest, backend: Backend, command: str) -> None:
        """Refuse an engine of another processor, device or version, with the command that builds it again.

        Raises:
            ForAnotherMachine: names the difference.
        """

    def require_device(self, backend: Backend) -> None:  # noqa: B027  # a session's error names the missing part
        """Check that an engine can run here.

        Raises:
            SbsError: names the missing part.
        """

    def outputs(self, model: onnx.ModelProto, inputs: Named, request: Request) -> Named:
        """All outputs of a graph, on a temporary engine.

        Raises:
            SbsError: the backend refuses the graph, or cannot return inner tensors.
        """
        raise SbsError(f"{request.backend.name} does not show what is inside an engine")

    def request_like(self, backend: Backend, precision: str, details: Mapping[str, Any]) -> Request:
        """A request for another engine, with the settings of an engine with these details (if empty, the defaults).

        Raises:
            SbsError: the details are damaged.
        """
        return Request(backend=backend, precision=precision)


def runtime_of(backend: Backend) -> Runtime:
    """The backend's `Runtime`, imported on demand, as its libraries may not be installed."""
    return cast(Runtime, importlib.import_module(f"{__package__}.{backend.runtime}.runtime").RUNTIME)


def build_engine(
    source: Path,
    destination: Path,
    request: Request,
    *,
    made_from: Mapping[str, str],
    legal: Mapping[str, Any] | None = None,
    placement: Mapping[str, Any] | None = None,
) -> BuiltEngine:
    """Build an engine and write it with its manifest, unless a current engine exists.

    Args:
        source: a graph as the backend executes it, with all types.
        made_from: hashes of the inputs of `source`, including the plan.
        legal: changes of the plan's graph for this backend, for the manifest.
        placement: how the precisions of the layers were chosen, for the manifest.

    Raises:
        SbsError: the backend is missing, refuses the graph or this machine, or leaves a layer in float.
    """
    runtime, version = runtime_of(request.backend), str(require_module(request.backend).__version__)
    inputs = {
        **made_from,
        source.name: rundir.sha256_of(source),
        **runtime.depends_on(request),
        request.backend.module: version,
        **({} if placement is None else {"placement": rundir.hash_of(placement)}),
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
        **({} if placement is None else {"placement": dict(placement)}),
        **found,
        "build_seconds": round(time.perf_counter() - began, 3),
    }
    rundir.write_manifest(destination, inputs, versions={request.backend.module: version}, details=details)
    return BuiltEngine(path=destination, skipped=False, details=details)


def open_engine(path: Path, backend: Backend, precision: str, threads: int, *, built: bool) -> Engine:
    """Load a file as an engine; `Runtime.load` explains arguments and errors."""
    return runtime_of(backend).load(path, backend, precision, threads, built=built)


@contextlib.contextmanager
def opened_graph(graph: Path, request: Request, threads: int) -> Iterator[Engine]:
    """Open an ONNX file: itself on a backend that runs such files, else an engine that is built beside it.

    Raises:
        SbsError: the backend is missing, refuses the graph, or cannot run here.
    """
    build = runtime_of(request.backend).suffix == "engine"
    path = build_engine(graph, graph.with_suffix(".engine"), request, made_from={}).path if build else graph
    with open_engine(path, request.backend, request.precision, threads, built=build) as engine:
        yield engine
