"""JSON files with a schema version, read into checked records."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError

Record = TypeVar("Record", bound=BaseModel)


def load_versioned(path: Path, record: type[Record], version: int, remedy: str, *, sha256: str | None = None) -> Record:
    """Read and check a file; SbsError names the first wrong field and `remedy`.

    Args:
        version: the newest `schema_version` that is understood.
        sha256: what the bytes must hash to, where that is known.
    """
    value = rundir.read_json(path, sha256)
    found = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(found, int) and found > version:
        raise SbsError(f"{path}: schema_version {found} is newer than {version}; install a newer sbs")
    try:
        return record.model_validate(value)
    except ValidationError as error:
        raise SbsError(f"{path}: {first_problem(error)}; {remedy}") from error


def first_problem(error: ValidationError) -> str:
    """One line for the first problem pydantic found: the field's path and what is wrong with it."""
    problem: Any = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
