"""Hashes and versions of all artifacts, and the commands that make them again."""

import dataclasses
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbs_deploy.backends.spec import DEFAULT_BACKEND, backend_labelled
from sbs_deploy.engines.rebuild import rebuild_command
from sbs_train.contract import rundir
from sbs_train.contract.config import TrainConfig, load_config, to_dict
from sbs_train.contract.errors import SbsError
from sbs_train.contract.records import SearchDevice
from sbs_train.contract.rundir import Manifest, RunDir
from sbs_train.recipes import DEFAULT_RECIPE, RECIPES

_PLACES = ("out", "device", "data_dir", "workers")
"""Settings about the machine, which do not change results."""
_LATEST = Path("runs/latest")
"""Path of the run after training it again."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of an artifact."""

    artifact: str
    sha256: str
    made_from: dict[str, str]
    versions: dict[str, str]
    build: str | None
    """The command that builds an engine again; None for other artifacts."""


def run_provenance(run: RunDir, device: SearchDevice | None) -> list[Provenance]:
    """Origins of all files with a manifest, and of the device of `--cost`."""
    found = []
    if device is not None:
        about = f"{device.target} on {device.device}, batch {device.batch}"
        name = f"device.json of the search ({about})"
        found.append(Provenance(artifact=name, sha256=device.sha256, made_from={}, versions={}, build=None))
    for path in sorted(run.root.rglob("*.manifest.json")):
        artifact = path.with_name(path.name.removesuffix(".manifest.json"))
        if not artifact.is_file():
            continue
        manifest = rundir.read_manifest(artifact)
        found.append(
            Provenance(
                artifact=artifact.relative_to(run.root).as_posix(),
                sha256=manifest.sha256,
                made_from=manifest.made_from,
                versions=manifest.versions,
                build=_build_command(run, artifact, manifest),
            )
        )
    return found


def _build_command(run: RunDir, artifact: Path, manifest: Manifest) -> str | None:
    """The `sbs-deploy build` command of an engine, or of the INT8 model; None for other artifacts."""
    if artifact == run.model_ort:
        return f"sbs-deploy build {_LATEST} --engine int8 {DEFAULT_BACKEND.flags}"
    parts = artifact.name.split(".")
    backend = backend_labelled(parts[2]) if artifact.parent == run.engines and len(parts) > 2 else None
    return None if backend is None else rebuild_command(artifact, manifest, backend, _LATEST)


def train_command(run: RunDir) -> str | None:
    """`sbs-train` with the nearest recipe and differing flags; None for settings of another version."""
    try:
        config = load_config(run.config)
    except SbsError:
        return None
    commands: list[list[str]] = [_command(name, recipe, config) for name, recipe in RECIPES.items()]
    commands.sort(key=len)
    return shlex.join(commands[0])


def _command(name: str, recipe: TrainConfig, config: TrainConfig) -> list[str]:
    placed = {field: getattr(config, field) for field in _PLACES}
    flags = list(_flags(to_dict(dataclasses.replace(recipe, **placed)), to_dict(config)))
    return ["sbs-train", *([] if name == DEFAULT_RECIPE else [name]), *flags]


def _flags(base: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in wanted.items():
        flag = prefix + name.strip("_").replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(base[name], value, f"{flag}.")
        elif value != base[name]:
            if isinstance(value, bool):
                place, _, last = flag.rpartition(".")
                yield f"--{flag}" if value else f"--{place}.no-{last}" if place else f"--no-{last}"
            else:
                yield f"--{flag}"
                yield from map(str, value if isinstance(value, list) else [value])
