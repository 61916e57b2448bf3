"""An engine file that `build` made, loaded with the backend that it was built for."""

from pathlib import Path

from sbs_deploy.backends.base import Engine
from sbs_deploy.backends.runtime import open_engine, runtime_of
from sbs_deploy.backends.spec import backend_labelled, require_module
from sbs_train.contract import rundir
from sbs_train.contract.errors import SbsError
from sbs_train.contract.trust import trusting


def load_engine(path: Path, *, threads: int, trust: bool) -> Engine:
    """The engine, ready to run; `sbs_deploy.load` explains the arguments and the errors."""
    manifest = rundir.require_whole(path, "sbs-deploy build")
    backend = backend_labelled(str(manifest.details.get("backend", "")))
    if backend is None or "precision" not in manifest.details:
        raise SbsError(f"{path} is no engine; build one of its run with `sbs-deploy build`")
    require_module(backend)
    precision = str(manifest.details["precision"])
    runtime_of(backend).check_fits(path, manifest, backend, f"sbs-deploy build --engine {precision} {backend.flags}")
    with trusting(everything=trust):
        return open_engine(path, backend, precision, threads, built=True)
