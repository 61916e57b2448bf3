"""Manifests: the hashes of an artifact and of its inputs.

A manifest `FILE.manifest.json` beside an artifact names the SHA-256 of the artifact and of its inputs. A stage skips
itself if the hashes of its inputs are unchanged, a later stage refuses inputs that do not fit together, and readers of
the artifact refuse bytes that do not match.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from sbs_train.contract.bounds import FILE_BYTES
from sbs_train.contract.errors import SbsError
from sbs_train.contract.files import is_file, manifest_path, read_bytes, read_json, sha256_of, write_json
from sbs_train.contract.placement import EngineDetails
from sbs_train.contract.records import first_problem

PLAN_KEY = "plan"
"""Key in the manifest of weights: the SHA-256 of their plan."""
_MADE_BY = {
    "validation.json": "sbs-deploy validate",
    "deploy": "sbs-deploy export",
    "legal": "sbs-deploy build",
    "engines": "sbs-deploy build",
}
"""The command that makes a file, by the name of the file or of its directory."""
_WEIGHTS = {"plan.json": "weights.safetensors", "search.plan.json": "search.safetensors"}


_LEVELS = 3
"""Directories from an artifact up to its run."""


class Manifest(BaseModel):
    """Provenance of one artifact."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int = 1
    sha256: str
    """SHA-256 of the artifact."""
    made_from: dict[str, str]
    """SHA-256 of every input, by file name or setting."""
    versions: dict[str, str] = {}
    details: dict[str, Any] = {}
    """More about the artifact, as a `placement.EngineDetails`."""

    @field_validator("details")
    @classmethod
    def _check(cls, details: dict[str, Any]) -> dict[str, Any]:
        EngineDetails.model_validate(details)
        return details


def write_manifest(
    artifact: Path,
    made_from: Mapping[str, str],
    *,
    versions: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Record the inputs of `artifact`. The manifest is written last: an artifact without a manifest is unfinished."""
    manifest = Manifest(
        sha256=sha256_of(artifact),
        made_from=dict(made_from),
        versions=dict(versions or {}),
        details=dict(details or {}),
    )
    write_json(manifest_path(artifact), manifest.model_dump())


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of `artifact`; SbsError if the manifest is missing or damaged."""
    path = manifest_path(artifact)
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        made_by = _MADE_BY.get(artifact.name) or _MADE_BY.get(artifact.parent.name, "sbs-train --resume")
        raise SbsError(
            f"{path} is not a manifest ({first_problem(error)}); make {artifact.name} again with "
            f"`{command_for(artifact, made_by)}`"
        ) from error


def is_current(artifact: Path, made_from: Mapping[str, str]) -> bool:
    """Whether `artifact` is whole and was made from exactly these inputs."""
    if not is_file(artifact) or not is_file(manifest_path(artifact)):
        return False
    try:
        manifest = read_manifest(artifact)
    except SbsError:
        return False
    return manifest.made_from == dict(made_from) and manifest.sha256 == sha256_of(artifact)


def require_whole(artifact: Path, made_by: str) -> Manifest:
    """The manifest of an artifact whose bytes match it; SbsError names the command that makes it again."""
    manifest = _manifest_of(artifact, made_by)
    if manifest.sha256 != sha256_of(artifact):
        raise _changed(artifact, made_by)
    return manifest


def read_whole(artifact: Path, made_by: str, limit: int = FILE_BYTES) -> bytes:
    """The bytes of an artifact, which match its manifest; SbsError names the command that makes it again."""
    manifest = _manifest_of(artifact, made_by)
    content = read_bytes(artifact, limit)
    if manifest.sha256 != hashlib.sha256(content).hexdigest():
        raise _changed(artifact, made_by)
    return content


def read_recorded(artifact: Path, made_by: str, limit: int = FILE_BYTES) -> bytes:
    """The bytes of a file that may have no manifest; where it has one, as `read_whole`, SbsError included."""
    if not is_file(artifact):
        raise SbsError(f"{artifact} is missing; make it with `{command_for(artifact, made_by)}`")
    if is_file(manifest_path(artifact)):
        return read_whole(artifact, made_by, limit)
    return read_bytes(artifact, limit)


def recorded_plan(plan: Path) -> str | None:
    """SHA-256 of a plan by the manifest of its weights; None where the manifest names no plan, as in a bundle."""
    weights = plan.with_name(_WEIGHTS.get(plan.name, plan.name))
    if not is_file(manifest_path(weights)):
        return None
    found = read_manifest(weights).details.get(PLAN_KEY)
    return found if isinstance(found, str) else None


def _manifest_of(artifact: Path, made_by: str) -> Manifest:
    if not is_file(artifact):
        raise SbsError(f"{artifact} is missing; make it with `{command_for(artifact, made_by)}`")
    if not is_file(manifest_path(artifact)):
        raise SbsError(
            f"{artifact} is unfinished (no manifest beside it); make it again with `{command_for(artifact, made_by)}`"
        )
    return read_manifest(artifact)


def _changed(artifact: Path, made_by: str) -> SbsError:
    return SbsError(f"{artifact} changed after it was made; make it again with `{command_for(artifact, made_by)}`")


def command_for(artifact: Path, command: str) -> str:
    """The command, with the artifact's run appended where the command names no run."""
    root = next((above for above in list(artifact.parents)[:_LEVELS] if (above / "config.json").is_file()), None)
    if root is None or len(command.split()) != 2 or not command.startswith("sbs-"):
        return command
    return f"{command} --out {root}" if command.startswith("sbs-train") else f"{command} {root}"
