"""The run directory: names, atomic writes, hashes and manifests.

Every artifact is written to a temporary name beside it and renamed, so a reader sees the old file or the new one.
A manifest `FILE.manifest.json` beside an artifact names the SHA-256 of the artifact and of what it was made from:
a stage whose inputs hash alike skips itself, and a later stage refuses inputs that do not fit together.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sbs_train.contract.errors import SbsError
from sbs_train.contract.json_text import MAX_BYTES, parse_json
from sbs_train.contract.records import Details, first_problem

_MADE_BY = {
    "validation.json": "sbs-deploy validate",
    "deploy": "sbs-deploy export",
    "legal": "sbs-deploy build",
    "engines": "sbs-deploy build",
}
"""What makes a file again, by its name or its directory's."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; `root` may be a link such as runs/latest."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def weights(self) -> Path:
        return self.root / "weights.safetensors"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def deploy(self) -> Path:
        return self.root / "deploy"

    @property
    def model_fp32(self) -> Path:
        """The dense float network: the control every speed-up is measured against."""
        return self.deploy / "model.fp32.onnx"

    @property
    def model_slim(self) -> Path:
        """The network with pruned channels removed and BatchNorm folded, in float: what Q/DQ is inserted into."""
        return self.deploy / "model.slim.onnx"

    @property
    def codes(self) -> Path:
        """Integer weight codes, per-channel scales and activation scales of the slim network (npz)."""
        return self.deploy / "model.slim.npz"

    @property
    def model_trt(self) -> Path:
        return self.deploy / "model.trt.onnx"

    @property
    def model_ort(self) -> Path:
        return self.deploy / "model.ort.onnx"

    @property
    def golden(self) -> Path:
        return self.deploy / "golden.npz"

    @property
    def validation(self) -> Path:
        return self.deploy / "validation.json"

    @property
    def engines(self) -> Path:
        return self.deploy / "engines"

    @property
    def bench(self) -> Path:
        return self.deploy / "bench.json"

    @property
    def report(self) -> Path:
        return self.deploy / "report.html"

    def require(self, path: Path, made_by: str) -> Path:
        """`path` if it exists, else an SbsError naming the command that makes it."""
        if not path.is_file():
            raise SbsError(f"{path} is missing; make it with `{made_by}`")
        return path


class Manifest(BaseModel):
    """Provenance of one artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int = 1
    sha256: str
    """Of the artifact itself."""
    made_from: dict[str, str]
    """SHA-256 of every input, by file name or setting."""
    versions: dict[str, str] = {}
    details: dict[str, Any] = {}
    """Of the form of `records.Details`."""

    @field_validator("details")
    @classmethod
    def _check(cls, details: dict[str, Any]) -> dict[str, Any]:
        Details.model_validate(details)
        return details


def open_run(path: Path) -> RunDir:
    """An existing run; SbsError if `path` holds none."""
    run = RunDir(path)
    if not os.path.isdir(path):  # False, too, for what cannot be a path
        raise SbsError(f"no run at {path}; make one with `sbs-train`, or name its directory")
    if not run.config.is_file():
        raise SbsError(f"{path} is not a run directory (no config.json); make one with `sbs-train --out {path}`")
    return run


def create_run(path: Path) -> RunDir:
    """A run directory that can be written to; SbsError if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SbsError(f"cannot write to {path} ({error.strerror}); choose another directory with --out") from error
    return RunDir(path)


def link_latest(run: RunDir, levels: int = 1) -> None:
    """Point `latest`, `levels` above the run, to it; skipped where a real file is in the way or links fail."""
    root = run.root.resolve()  # `run.root` may be the link itself, or `.`
    link = root.parents[levels - 1] / "latest"
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".latest.{os.getpid()}")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(root.relative_to(link.parent))
        temporary.replace(link)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same directory; it replaces `path` only if the block succeeds.

    Raises:
        SbsError: the directory cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SbsError(f"cannot write {path} ({error.strerror or error}); free space or choose --out") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parsed JSON; SbsError if the file is missing, damaged or too large."""
    try:
        with path.open("rb") as file:
            return parse_json(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise SbsError(f"cannot read {path} ({error.strerror})") from error
    except ValueError as error:
        raise SbsError(f"{path} is damaged ({error}); make it again") from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file; SbsError if it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise SbsError(f"cannot read {path} ({error.strerror})") from error
    return digest.hexdigest()


def hash_of(value: Any) -> str:
    """Hex digest of a JSON-able value, such as the settings a stage depends on."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def manifest_path(artifact: Path) -> Path:
    """The manifest beside an artifact."""
    return artifact.with_name(artifact.name + ".manifest.json")


def write_manifest(
    artifact: Path,
    made_from: Mapping[str, str],
    *,
    versions: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record what `artifact` was made from; written last, so an artifact without one is unfinished."""
    manifest = Manifest(
        sha256=sha256_of(artifact),
        made_from=dict(made_from),
        versions=dict(versions or {}),
        details=dict(details or {}),
    )
    write_json(manifest_path(artifact), manifest.model_dump())


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of `artifact`; SbsError if it is missing or damaged."""
    path = manifest_path(artifact)
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        made_by = _MADE_BY.get(artifact.name) or _MADE_BY.get(artifact.parent.name, "sbs-train --resume")
        raise SbsError(
            f"{path} is not a manifest ({first_problem(error)}); make {artifact.name} again with `{made_by}`"
        ) from error


def is_current(artifact: Path, made_from: Mapping[str, str]) -> bool:
    """Whether `artifact` is whole and was made from exactly these inputs."""
    if not artifact.is_file() or not manifest_path(artifact).is_file():
        return False
    try:
        manifest = read_manifest(artifact)
    except SbsError:
        return False
    return manifest.made_from == dict(made_from) and manifest.sha256 == sha256_of(artifact)


def require_whole(artifact: Path, made_by: str) -> Manifest:
    """The manifest of an artifact whose bytes match it; SbsError names the command that makes it again."""
    if not artifact.is_file():
        raise SbsError(f"{artifact} is missing; make it with `{made_by}`")
    if not manifest_path(artifact).is_file():
        raise SbsError(f"{artifact} is unfinished (no manifest beside it); make it again with `{made_by}`")
    manifest = read_manifest(artifact)
    if manifest.sha256 != sha256_of(artifact):
        raise SbsError(f"{artifact} changed after it was made; make it again with `{made_by}`")
    return manifest
