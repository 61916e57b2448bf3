"""Engines built again, from the very graph that the measured one was built from: builds differ in speed."""

from pathlib import Path

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
