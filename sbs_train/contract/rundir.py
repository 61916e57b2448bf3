"""The run directory: names of its files, opening and creating it.

This module also passes on `files.py`, which reads and writes files, and `manifest.py`, which checks their hashes.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sbs_train.contract.errors import SbsError
from sbs_train.contract.files import appending as appending
from sbs_train.contract.files import atomic_path as atomic_path
from sbs_train.contract.files import hash_of as hash_of
from sbs_train.contract.files import is_file as is_file
from sbs_train.contract.files import is_stdout as is_stdout
from sbs_train.contract.files import manifest_path as manifest_path
from sbs_train.contract.files import private_directory as private_directory
from sbs_train.contract.files import read_bytes as read_bytes
from sbs_train.contract.files import read_json as read_json
from sbs_train.contract.files import require_own_directory, trouble
from sbs_train.contract.files import require_replaceable as require_replaceable
from sbs_train.contract.files import sha256_of as sha256_of
from sbs_train.contract.files import write_json as write_json
from sbs_train.contract.files import write_text as write_text
from sbs_train.contract.lock import locked as locked
from sbs_train.contract.manifest import Manifest as Manifest
from sbs_train.contract.manifest import is_current as is_current
from sbs_train.contract.manifest import read_manifest as read_manifest
from sbs_train.contract.manifest import read_recorded as read_recorded
from sbs_train.contract.manifest import read_whole as read_whole
from sbs_train.contract.manifest import require_whole as require_whole
from sbs_train.contract.manifest import write_manifest as write_manifest


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
        """The float network with pruned channels removed and BatchNorm folded; Q/DQ is inserted into this graph."""
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
        if not is_file(path):
            raise SbsError(f"{path} is missing; make it with `{made_by}`")
        return path


def open_run(path: Path) -> RunDir:
    """Open an existing run; SbsError if `path` holds no run."""
    run = RunDir(path)
    if not os.path.isdir(path):  # also False for an invalid path
        raise SbsError(f"no run at {path}; make one with `sbs-train`, or name its directory")
    if not is_file(run.config):
        raise SbsError(f"{path} is not a run directory (no config.json); make one with `sbs-train --out {path}`")
    return run


def create_run(path: Path) -> RunDir:
    """Make a run directory, if missing; SbsError if it cannot be written to."""
    if is_stdout(path):
        raise SbsError(f"--out {path} stands for standard output, which is no directory; name one")
    try:
        path.mkdir(parents=True, exist_ok=True)
        require_own_directory(path / "checkpoints")
        (path / "checkpoints").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SbsError(f"cannot write to {path} ({trouble(error)}); choose another directory with --out") from error
    return RunDir(path)


def make_directory(path: Path) -> None:
    """Make a directory and its parents; SbsError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SbsError(f"cannot write to {path} ({trouble(error)}); choose another directory with --out") from error


def link_latest(run: RunDir, levels: int = 1) -> None:
    """Point the link `latest`, `levels` above the run, to the run; skipped if a file has that name or links fail."""
    root = run.root.resolve()  # `run.root` may be the link itself, or `.`
    link = root.parents[levels - 1] / "latest"
    if link.exists() and not link.is_symlink():
        return
    with contextlib.suppress(OSError), private_directory(link.parent) as directory:
        temporary = directory / link.name
        temporary.symlink_to(root.relative_to(link.parent))
        temporary.replace(link)
