"""Bundles take a run to a device: one file with all inputs of `build`, `validate`, `bench` and `report`, without torch.

    NAME.sbs.zip ──open──▶ NAME/   a run directory beside the archive, unpacked once

Only files that were exported from the current plan and passed validation are bundled.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sbs_deploy import archive
from sbs_deploy.build import validate_stage
from sbs_deploy.export.golden_file import load_golden
from sbs_deploy.export.pipeline import FORMAT, Progress
from sbs_deploy.validate.run import validate_run
from sbs_train.contract import rundir
from sbs_train.contract.errors import GateFailed, SbsError
from sbs_train.contract.plan import load_plan
from sbs_train.contract.rundir import RunDir

SUFFIX = ".sbs.zip"
REMEDY = "sbs-deploy export"

_RUN = RunDir(Path())
EXPORTED = (_RUN.model_fp32, _RUN.model_slim, _RUN.codes, _RUN.model_trt, _RUN.model_ort, _RUN.golden)
"""Exported files that a device reads, relative to the run directory."""
JUDGED = (_RUN.validation, rundir.manifest_path(_RUN.validation))
"""Results of validation, which a device may replace, relative to the run directory."""
REQUIRED = (_RUN.config, _RUN.plan, *EXPORTED, *(rundir.manifest_path(path) for path in EXPORTED), *JUDGED)
OPTIONAL = (_RUN.metrics,)
KNOWN = frozenset(path.as_posix() for path in (*REQUIRED, *OPTIONAL))


@dataclass(frozen=True, kw_only=True)
class WrittenBundle:
    """Result of `make_bundle`."""

    path: Path
    images: int
    """Number of golden images in the bundle."""
    index: archive.Index


def make_bundle(run: RunDir, out: Path, *, images: int, progress: Progress) -> WrittenBundle:
    """Write a bundle of `run` to `out`, with the first `images` golden images; equal runs give equal bytes.

    Raises:
        GateFailed: validation does not pass.
        SbsError: an exported file is missing, damaged or of another plan, or `out` is no bundle's name.
    """
    if _unpacked(out) is None:
        raise SbsError(f"--out {out}: a bundle is known by its name; call it {out.stem or 'NAME'}{SUFFIX}")
    load_plan(run.require(run.plan, "sbs-train"))
    _require_current(run)
    validate_stage(run, progress)
    try:
        rundir.make_directory(out.parent)
        with rundir.private_directory(out.parent) as temporary:
            copy = RunDir(temporary)
            kept = [path for path in (*REQUIRED, *OPTIONAL) if path in REQUIRED or (run.root / path).is_file()]
            copy.deploy.mkdir()
            for path in kept:
                (copy.root / path).write_bytes(rundir.read_bytes(run.root / path))
            kept_images = _shorten(copy, images)
            index = archive.write_archive(copy.root, [path.as_posix() for path in kept], out)
    except OSError as error:
        raise SbsError(f"cannot write {out} ({error.strerror or error}); choose another place with --out") from error
    return WrittenBundle(path=out, images=kept_images, index=index)


def open_bundle(path: Path, progress: Progress) -> RunDir:
    """The run directory of a bundle; the first call unpacks the bundle beside its file.

    Raises:
        SbsError: the archive is damaged or no bundle, or the directory has another content.
    """
    destination = _unpacked(path)
    if destination is None:
        raise SbsError(f"{path} is neither a run directory nor a bundle; if it is a bundle, rename it to NAME{SUFFIX}")
    index = archive.read_index(path, KNOWN)
    missing = [name for name in (required.as_posix() for required in REQUIRED) if name not in index.members]
    if missing:
        raise SbsError(f"{path} lacks {missing[0]}; make it again with `sbs-deploy bundle`")
    if not destination.is_symlink() and not destination.exists():
        _unpack(path, destination)
        progress(f"bundle: unpacked to {destination}")
    _require_unpacked(path, index, destination)
    return RunDir(destination)


def _unpacked(path: Path) -> Path | None:
    """Directory of an unpacked bundle: NAME for NAME.sbs.zip; None for other names."""
    name = path.name.removesuffix(SUFFIX)
    return None if name in (path.name, "", ".", "..") else path.with_name(name)


def _require_current(run: RunDir) -> None:
    """SbsError for files that are missing, damaged, or made from other than the current inputs."""
    fp32 = run.checkpoints / "fp32.safetensors"
    inputs = [path for path in (run.plan, run.config, run.weights, fp32, run.model_slim, run.codes) if path.is_file()]
    now = {"format": FORMAT, **{path.name: rundir.sha256_of(path) for path in inputs}}
    for path in (run.root / relative for relative in EXPORTED):
        for name, sha256 in rundir.require_whole(path, REMEDY).made_from.items():
            if now.get(name, sha256) != sha256:
                raise SbsError(f"{path} was made from another {name}; make it again with `{REMEDY}`")


def _shorten(run: RunDir, images: int) -> int:
    """Keep the first `images` golden images, and validate on them; returns their number."""
    golden = load_golden(run.golden, load_plan(run.plan))
    if images >= golden.samples:
        return golden.samples
    if images < golden.tapped:
        raise SbsError(
            f"--images {images} must be at least {golden.tapped}, the images that diverging layers are found with"
        )
    manifest = rundir.read_manifest(run.golden)
    made_from = {**manifest.made_from, run.golden.name: manifest.sha256, "images": str(images)}
    golden.first(images).save(run.golden)
    rundir.write_manifest(run.golden, made_from, versions=manifest.versions, details=manifest.details)
    if not validate_run(run).passed:
        raise GateFailed(f"the first {images} golden images alone do not pass validation; take more with --images")
    return images


def _unpack(path: Path, destination: Path) -> None:
    """Unpack under another name and rename, so that `destination` is always complete."""
    try:
        with rundir.private_directory(destination.parent) as temporary:
            whole = temporary / destination.name
            whole.mkdir()
            archive.unpack(path, KNOWN, whole)
            try:
                whole.rename(destination)
            except OSError:
                if not destination.is_dir():  # otherwise another process was faster
                    raise
    except OSError as error:
        raise SbsError(
            f"cannot unpack {path} to {destination} ({error.strerror}); copy it to where you can write"
        ) from error


def _require_unpacked(path: Path, index: archive.Index, destination: Path) -> None:
    """SbsError for a directory that is not the unpacked bundle."""
    marker = destination / archive.INDEX
    try:
        found = archive.Index.model_validate(rundir.read_json(marker)) if marker.is_file() else None
    except (SbsError, ValidationError):
        found = None
    if found != index:
        raise SbsError(f"{destination} is in the way of {path} and not made from it; move one of the two elsewhere")
    for name, member in index.members.items():
        file = destination / name
        if Path(name) not in JUDGED and not (file.is_file() and rundir.sha256_of(file) == member.sha256):
            raise SbsError(f"{file} changed after it was unpacked; remove {destination} to unpack {path.name} again")
