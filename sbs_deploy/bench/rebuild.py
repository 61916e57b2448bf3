"""Engines built again, from the very graph that the measured one was built from: builds differ in speed."""

from pathlib import Path
from typing import Any

from sbs_deploy.targets import ONNXRUNTIME, OPENVINO, Target
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.rundir import Manifest, RunDir


def source_of(run: RunDir, engine: Path, manifest: Manifest, command: str) -> Path:
    """The ONNX file that an engine was built from: one of the export, or the legalised one made of that.

    Args:
        command: what makes both again.

    Raises:
        SbsError: the file is gone, or is not the one any more.
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


def build_engine(
    source: Path, destination: Path, target: Target, precision: str, details: dict[str, Any], made_from: dict[str, str]
) -> Path:
    """Build `source` for the target as another engine was built; one that is current is left alone.

    Args:
        details: of that engine's manifest: for TensorRT batch profile, settings and chips. A timing cache is not used:
            it would repeat the choices of the build that filled it.

    Raises:
        SbsError: the target is not installed, or refuses the graph or this machine.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    if target.name == ONNXRUNTIME.name:
        from sbs_deploy.engine.onnxruntime import build_onnxruntime

        built = build_onnxruntime(source, destination, precision=precision, made_from=made_from, target=target)
    elif target.name == OPENVINO.name:
        from sbs_deploy.engine.openvino import build_openvino

        built = build_openvino(source, destination, precision=precision, made_from=made_from, target=target)
    else:
        from sbs_deploy.engine.tensorrt import RTX_COMPUTE_CAPABILITIES, build_tensorrt
        from sbs_deploy.engine.trt_config import DEFAULTS, BatchProfile, built_with

        # No details: the plan's engine has a damaged manifest, which its own row says.
        usual = BatchProfile(), DEFAULTS
        profile, settings = built_with(details, f"the engine for {target.label}") if details else usual
        built = build_tensorrt(
            source,
            destination,
            target=target,
            precision=precision,
            made_from=made_from,
            profile=profile,
            settings=settings,
            compute_capabilities=details.get("compute_capabilities") or RTX_COMPUTE_CAPABILITIES,
        )
    return built.path
