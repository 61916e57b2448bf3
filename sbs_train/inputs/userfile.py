"""Import a user's Python file and its neighbours (the modules beside it), apart from all other modules.

A file with a model may import neighbours at its top, inside the factory, or inside `forward`. With the folder on
`sys.path`, a neighbour `utils` would replace an installed `utils`, or the `utils` of another folder. So every loaded
file gets a package of its own, whose modules have an `import` that looks into the package first. Relative imports work
as well, including those that leave the folder for its parent package.
"""

import builtins
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "sbs_user_file_"
_numbers = itertools.count()
_borrowed: set[str] = set()
"""Names in `sys.modules` that stand for a neighbour."""


def load_file(path: Path) -> ModuleType:
    """Run a Python file and return its module; raises what the file's code raises."""
    file = path.resolve()
    root = file.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    package = ModuleType(f"{PREFIX}{next(_numbers)}")
    package.__path__ = list(dict.fromkeys([str(file.parent), str(root)]))
    package.__file__ = str(file)
    sys.modules[package.__name__] = package
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        sys.meta_path.append(_Borrower())
    for name in _borrowed:
        sys.modules.pop(name, None)
    _borrowed.clear()
    importlib.invalidate_caches()
    name = ".".join([package.__name__, *file.relative_to(root).with_suffix("").parts])
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look the module up, and neighbours may import it.
    sys.modules[name] = sys.modules[f"{package.__name__}.{file.stem}"] = module
    spec.loader.exec_module(module)
    return module


class _Finder(MetaPathFinder):
    """Finds neighbours in the packages of loaded files."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            assert spec.origin is not None
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Borrower(MetaPathFinder):
    """Finds neighbours for `importlib.import_module` and pickles, by names of no installed module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        frame = sys._getframe(1) if path is None else None
        while frame is not None:
            package = str(frame.f_globals.get("__name__")).partition(".")[0]
            if package.startswith(PREFIX) and PathFinder.find_spec(fullname, sys.modules[package].__path__):
                return ModuleSpec(fullname, _Alias(f"{package}.{fullname}"))
            frame = frame.f_back
        return None


class _Alias(Loader):
    """Loads a module under a second name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        _borrowed.add(spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _Loader(SourceFileLoader):
    """Runs a module from source with its package's `import`; without a cache, which misses quick changes."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _Import(package)}
        super().exec_module(module)

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Import:
    """The `__import__` of all modules of one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __call__(
        self,
        name: str,
        globals: dict[str, Any] | None = None,
        locals: dict[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        from_c = fromlist == []  # pickles import by the C API, which then looks for that very name in `sys.modules`
        if level or from_c or not self._is_neighbour(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist or (), 0)
        return found if fromlist else sys.modules[f"{self.package}.{top}"]

    def _is_neighbour(self, top: str) -> bool:
        package = sys.modules[self.package]
        spec = PathFinder.find_spec(f"{self.package}.{top}", package.__path__)
        if spec is None:
            return False
        # As on `sys.path`, a folder without `__init__.py` comes last. `timm.py` imports the installed timm.
        return not ((spec.origin is None or spec.origin == package.__file__) and _is_installed(top))


def _is_installed(top: str) -> bool:
    if top in sys.modules and top not in _borrowed:
        return True
    finders = [finder for finder in sys.meta_path if not isinstance(finder, _Borrower)]
    return any(finder.find_spec(top, None) is not None for finder in finders)
