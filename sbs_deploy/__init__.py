"""From a plan and weights to engines and numbers; `sbs-deploy` calls these functions. Importing needs no torch.

A function may have the name of a module (`build` and sbs_deploy/build.py): `sbs_deploy.build` is the function, and
`from sbs_deploy.build import …` imports from the module.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbs_deploy.api import bench as bench
    from sbs_deploy.api import build as build
    from sbs_deploy.api import bundle as bundle
    from sbs_deploy.api import evaluate as evaluate
    from sbs_deploy.api import export as export
    from sbs_deploy.api import lint as lint
    from sbs_deploy.api import load as load
    from sbs_deploy.api import report as report
    from sbs_deploy.api import validate as validate

_NAMES = ("bench", "build", "bundle", "evaluate", "export", "lint", "load", "report", "validate")
_HOMES = {name: "sbs_deploy.api" for name in _NAMES}
"""Module of each public name."""
__all__ = [*_HOMES]  # names all the same


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


class _Package(ModuleType):
    """Keeps functions where the import system would put modules of the same names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
