"""Controls: the dense and the pruned network in float, on every backend that an engine of the plan runs on.

A backend that runs ONNX files takes the float ONNX files. For other backends controls are built with the settings of
the plan's engine, and kept in deploy/controls/.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sbs_deploy.backends.runtime import build_engine, runtime_of
from sbs_deploy.backends.spec import Backend, Precision
from sbs_deploy.export.golden_file import load_golden
from sbs_deploy.graph.model_file import load_onnx, save_onnx
from sbs_deploy.legalise.half import half_precision
from sbs_deploy.legalise.ranges import beyond_float16
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Control:
    """A float network on a backend."""

    network: Literal["dense", "slim"]
    precision: Precision
    backend: Backend

    @property
    def label(self) -> str:
        """Name in tables: fp32 dense."""
        return f"{self.precision} {self.network}"

    @property
    def straight(self) -> bool:
        """Whether the backend runs the ONNX file without a build."""
        return runtime_of(self.backend).suffix == "onnx"

    def path(self, run: RunDir) -> Path:
        """The measured file."""
        if self.straight:
            return self.graph(run)
        return run.deploy / "controls" / f"{self.network}.{self.precision}.{self.backend.label}.engine"

    def graph(self, run: RunDir) -> Path:
        """The control's ONNX file; `write_graph` makes the one in FP16."""
        exported = self.exported(run)
        return exported if self.precision == "fp32" else run.deploy / "controls" / f"{self.network}.fp16.onnx"

    def exported(self, run: RunDir) -> Path:
        """The exported float32 ONNX file."""
        return run.model_fp32 if self.network == "dense" else run.model_slim


def wanted_controls(backend: Backend, against: tuple[str, ...]) -> list[Control]:
    """Controls on a backend: dense in FP32; if in `against`, dense in `fp16` and `slim` (FP16 if supported)."""
    half = "fp16" in backend.precisions
    fp32: Precision = "fp32"
    found = [Control(network="dense", precision=fp32, backend=backend)] if fp32 in backend.precisions else []
    if "fp16" in against and half:
        found.append(Control(network="dense", precision="fp16", backend=backend))
    if "slim" in against:
        found.append(Control(network="slim", precision="fp16" if half else "fp32", backend=backend))
    return found


def write_graph(control: Control, run: RunDir) -> Path:
    """The control's ONNX file; an FP16 file is written unless current.

    Raises:
        SbsError: the exported file is missing or damaged.
    """
    exported, graph = control.exported(run), control.graph(run)
    rundir.require_whole(exported, "sbs-deploy export")
    if control.precision == "fp32":
        return graph
    made_from = {path.name: rundir.sha256_of(path) for path in (exported, run.golden)}
    if not rundir.is_current(graph, made_from):
        graph.parent.mkdir(parents=True, exist_ok=True)
        model, golden = load_onnx(exported), load_golden(run.golden, load_plan(run.plan))
        save_onnx(half_precision(model, beyond_float16(model, golden.inputs)), graph)
        rundir.write_manifest(graph, made_from)
    return graph


@contextlib.contextmanager
def control_engine(control: Control, run: RunDir, details: dict[str, Any], build: int) -> Iterator[Path]:
    """Yield the ONNX file, or a built engine; builds after number 0 are removed afterwards.

    Args:
        details: details from the manifest of the plan's engine.
    """
    graph = write_graph(control, run)
    if control.straight:
        yield graph
        return
    try:
        runtime_of(control.backend).require_device(control.backend)
    except SbsError as error:
        raise SbsError(f"{control.label} was not built: {error}") from error
    made_from = {control.exported(run).name: rundir.sha256_of(control.exported(run))}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if build else control.path(run).parent
        like = runtime_of(control.backend).request_like(control.backend, control.precision, details)
        yield build_engine(graph, folder / control.path(run).name, like, made_from=made_from).path
