"""The command that builds an engine again, from its manifest: what a remedy tells the user to run."""

import shlex
from dataclasses import asdict
from pathlib import Path

from sbs_deploy.backends.request import BatchProfile
from sbs_deploy.backends.spec import Backend
from sbs_train.contract.rundir import Manifest


def rebuild_command(engine: Path, manifest: Manifest, backend: Backend, run: Path) -> str:
    """`sbs-deploy build` with everything that the engine was built with.

    Args:
        engine: model.PRECISION.BACKEND.engine; its name says what was built.
        manifest: of the engine; says how.
        backend: the one that the name says.
        run: the run it belongs to.
    """
    details = manifest.details
    legal = details.get("legal", {})
    precision = engine.name.split(".")[1]
    words = ["sbs-deploy", "build", str(run), "--engine", precision, *backend.flags.split()]
    asked = {
        "legalise": legal.get("activations", "exact"),
        "depthwise": legal.get("depthwise", backend.depthwise),
        **{f"batch_{name}": size for name, size in details.get("profile", {}).items()},
        **details.get("settings", {}),
    }
    usual = {
        "legalise": "exact",
        "depthwise": backend.depthwise,
        **{f"batch_{name}": size for name, size in asdict(BatchProfile()).items()},
    }
    for name, value in asked.items():
        if value != usual.get(name):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
