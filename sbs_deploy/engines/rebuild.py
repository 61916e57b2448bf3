"""How to build an engine again, from its manifest: the graph, and the command."""

import shlex
from dataclasses import asdict
from pathlib import Path

from sbs_deploy.backends.request import BatchProfile
from sbs_deploy.backends.spec import Backend
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.placement import ASKED, MINUTES, EngineDetails, Placement
from sbs_train.contract.rundir import Manifest, RunDir

FLAGS = {"activations": "legalise", "outputs": "outputs"}
"""Flags of the options of a graph that placement may choose."""


def source_of(run: RunDir, engine: Path, manifest: Manifest, command: str) -> Path:
    """The ONNX file that an engine was built from: an exported or a legalised file.

    Args:
        command: the command that makes file and engine again.

    Raises:
        SbsError: the file is gone or has changed.
    """
    names = [name for name in manifest.made_from if name.endswith(".onnx")]
    if not names:
        raise SbsError(f"{engine.name} does not say what it was built from; run `{command}` again")
    name = next((name for name in names if name != run.model_slim.name), run.model_slim.name)
    exported = name in {path.name for path in (run.model_ort, run.model_trt, run.model_slim, run.model_fp32)}
    source = run.deploy / name if exported else run.deploy / "legal" / name
    if not source.is_file():
        raise SbsError(f"{engine.name} was built from {source.name}, which is gone; run `{command}` again")
    if rundir.sha256_of(source) != manifest.made_from[name]:
        raise SbsError(f"{engine.name} was built from another {source.name}; run `{command}` again")
    return source


def rebuild_command(engine: Path, manifest: Manifest, backend: Backend, run: Path) -> str:
    """The `sbs-deploy build` command with all settings of an engine.

    Args:
        engine: model.PRECISION.BACKEND.engine.
        manifest: the engine's manifest, which has the settings.
        backend: the backend in the engine's name.
        run: the engine's run.
    """
    details = manifest.details
    legal = details.get("legal", {})
    precision = engine.name.split(".")[1]
    words = ["sbs-deploy", "build", str(run), "--engine", precision, *backend.flags.split()]
    placement = EngineDetails.model_validate(details).placement or Placement(mode="plan")
    measured = placement.mode == "measured"
    # Where a backend quantizes outputs, the default depends on the plan.
    usual_outputs = "none" if backend.outputs == "none" else None
    asked = {
        "legalise": legal.get("activations", "exact"),
        "outputs": legal.get("outputs", "none" if measured else usual_outputs),
        "depthwise": legal.get("depthwise", backend.depthwise),
        **({"batch_opt": placement.batch} if measured else {}),
        **{f"batch_{name}": size for name, size in details.get("profile", {}).items()},
        **details.get("settings", {}),
        "placement": "plan" if placement.why == ASKED else None,
        "placement_minutes": placement.minutes if measured else MINUTES,
        "threads": placement.threads,
        **dict.fromkeys(FLAGS[name] for name in placement.free if name in FLAGS),
    }
    usual = {
        # Without --legalise the processor decides where outputs are quantized.
        "legalise": None if measured else "exact" if legal.get("outputs", "none") == "none" else None,
        "outputs": None if measured else usual_outputs,
        "depthwise": backend.depthwise,
        **{f"batch_{name}": size for name, size in asdict(BatchProfile()).items()},
        "placement_minutes": MINUTES,
        "threads": 1,
    }
    for name, value in asked.items():
        if value != usual.get(name):
            words += [
                f"--{name.replace('_', '-')}",
                *([] if value is True else [f"{value:g}" if isinstance(value, float) else str(value)]),
            ]
    if axes := details.get("axes", {}):
        words += ["--shapes", *(f"{name}={least}:{largest}" for name, (least, _, largest) in axes.items())]
    return shlex.join(words)
