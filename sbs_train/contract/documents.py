"""JSON files read into checked records: one place says which file, which field, what is wrong and how to mend it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import Metrics, first_problem

Record = TypeVar("Record")
Versioned = TypeVar("Versioned", bound=BaseModel)


def read_record(path: Path, record: type[Record], remedy: str, *, sha256: str | None = None) -> Record:
    """Read and check a file; SbsError names the first wrong field and `remedy`."""
    return checked(path, rundir.read_json(path, sha256, remedy), record, remedy)


def read_existing(path: Path, record: type[Record], made_by: str) -> Record | None:
    """Read and check a file that the command `made_by` writes; None if it is missing, SbsError if it is damaged."""
    return read_record(path, record, f"delete it, and make it again with `{made_by}`") if path.is_file() else None


Upgrade = Callable[[Path, dict[str, Any], str], dict[str, Any]]
"""From (path, document of an older version, remedy) to a document of the newest version; raises SbsError."""


def load_versioned(
    path: Path,
    record: type[Versioned],
    version: int,
    remedy: str,
    *,
    sha256: str | None = None,
    older: Mapping[int, Upgrade] | None = None,
) -> Versioned:
    """Read and check a file with a schema version; SbsError names the first wrong field and `remedy`.

    Args:
        version: the newest `schema_version` that is understood.
        sha256: what the bytes must hash to, where that is known.
        older: how documents of older versions are read, by version.
    """
    value = rundir.read_json(path, sha256, remedy)
    found = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(found, bool | float):  # a bool or a float can equal an integer
        raise SbsError(f"{path}: schema_version {found} is no version; {remedy}")
    if isinstance(found, int) and found > version:
        raise SbsError(f"{path}: schema_version {found} is newer than {version}; install a newer sbs")
    if isinstance(found, int) and older and found in older:
        value = older[found](path, value, remedy)
    return checked(path, value, record, remedy)


def checked(path: Path, value: Any, record: type[Record], remedy: str) -> Record:
    """Check a parsed value strictly and return its record; JSON's lists may stand for tuples. Raises SbsError."""
    try:
        return TypeAdapter(record).validate_json(json.dumps(value), strict=True)
    except RecursionError as error:
        raise SbsError(f"{path}: its values are nested too deeply; {remedy}") from error
    except ValidationError as error:
        raise SbsError(f"{path}: {first_problem(error)}; {remedy}") from error


def metrics_of(run: rundir.RunDir) -> Metrics:
    """The record of metrics.json; empty if the file is missing, SbsError if it is damaged."""
    return read_existing(run.metrics, Metrics, f"sbs-train --resume --out {run.root}") or Metrics()


def add_metrics(run: rundir.RunDir, entries: Mapping[str, Any]) -> Metrics:
    """Replace entries of metrics.json by name (in `seconds`, each stage by itself), and keep all other entries.

    Returns:
        The new content of metrics.json.

    Raises:
        SbsError: the existing metrics.json is damaged.
    """
    value: dict[str, Any] = {}
    if run.metrics.is_file():
        metrics_of(run)
        value = rundir.read_json(run.metrics)
    seconds = {**value.get("seconds", {}), **entries.get("seconds", {})}
    rundir.write_json(run.metrics, {**value, **entries, "seconds": seconds})
    return metrics_of(run)


_MADE_FROM = (
    ("weights.safetensors", "search", "search.safetensors"),
    ("checkpoints/search.safetensors", "calibration", "calibration.json"),
    ("checkpoints/calibration.json", "fp32", "fp32.safetensors"),
)
"""Tuples of a file, the name of its source in its manifest, and the source's path below checkpoints/."""


def require_one_run(run: rundir.RunDir) -> None:
    """Refuse a run whose files come from two trainings: the later one, with other settings, did not finish.

    Raises:
        SbsError: names the command that finishes the later training.
    """
    for name, word, source in _MADE_FROM:
        made, base = run.root / name, run.checkpoints / source
        if not all(map(rundir.is_file, map(rundir.manifest_path, (made, base)))):
            continue  # a bundle has no checkpoints
        if rundir.read_manifest(made).made_from.get(word) not in (None, rundir.read_manifest(base).sha256):
            raise SbsError(
                f"{made} was made from another {source}: a training with other settings was stopped in this run; end "
                f"it with `sbs-train --resume --out {run.root}`"
            )
