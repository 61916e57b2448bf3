"""A user's file finds its neighbours whenever it asks for them, and nobody else does."""

import copy
import importlib
import io
import pickle
import random
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sbs_train.contract.plan import ModelSpec
from sbs_train.inputs.models import build_model
from sbs_train.inputs.userfile import load_file

IMPORTS = {
    "import": ("import {name}", "{name}"),
    "import as": ("import {name} as n", "n"),
    "from": ("from {name} import VALUE", None),
    "relative": ("from . import {name}", "{name}"),
    "relative from": ("from .{name} import VALUE", None),
    "import_module": ("import importlib; n = importlib.import_module('{name}')", "n"),
    "__import__": ("n = __import__('{name}')", "n"),
    "submodule": ("import {name}_parts.deep", "{name}_parts.deep"),
    "from submodule": ("from {name}_parts.deep import VALUE", None),
    "from package": ("from {name}_parts import deep", "deep"),
}
WHERE = ("top", "factory", "forward", "neighbour")


def write(folder, name, how, where, value):
    """mine.py, whose network adds what its neighbour `name` holds."""
    statement, module = IMPORTS[how]
    statement = statement.format(name=name)
    read = "VALUE" if module is None else f"{module.format(name=name)}.VALUE"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(f"VALUE = {value}\n")
    parts = folder / f"{name}_parts"
    parts.mkdir(exist_ok=True)
    (parts / "__init__.py").write_text("")
    (parts / "deep.py").write_text(f"import {name}\nVALUE = {name}.VALUE\n")
    lines = {place: statement if place == where else "pass" for place in WHERE}
    (folder / "between.py").write_text(f"def value():\n    {statement}\n    return {read}\n")
    if where == "neighbour":
        lines["forward"], read = "import between", "between.value()"
    keep = f"self.value = {read}" if where in ("top", "factory") else "pass"
    use = "self.value" if where in ("top", "factory") else read
    (folder / "mine.py").write_text(
        f"from torch import nn\n{lines['top']}\n"
        "def small():\n"
        f"    {lines['factory']}\n"
        "    class Net(nn.Module):\n"
        "        def __init__(self):\n"
        f"            super().__init__()\n            self.c = nn.Conv2d(3, 4, 1)\n            {keep}\n"
        "        def forward(self, x):\n"
        f"            {lines['forward']}\n            return self.c(x).mean((2, 3)) * 0 + {use}\n"
        "    return Net()\n"
    )
    return f"{folder / 'mine.py'}:small"


def build(name):
    return build_model(ModelSpec(name=name, arguments={"width": 1, "num_classes": 4}), 3, size=(8, 8))


def value_of(model):
    return float(model(torch.zeros(1, 3, 8, 8))[0, 0].detach())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["neighbour", "utils", "random", "colorsys", "yaml", "timm", "torchvision"]),
    hows=st.tuples(st.sampled_from(sorted(IMPORTS)), st.sampled_from(sorted(IMPORTS))),
    wheres=st.tuples(st.sampled_from(WHERE), st.sampled_from(WHERE)),
)
def test_neighbours_of_one_name_in_two_folders(tmp_path, name, hows, wheres):
    if name != "neighbour":  # an installed module of that name is what `import_module` means
        hows = tuple("import" if how == "import_module" else how for how in hows)
    before, path = set(sys.modules), list(sys.path)
    first, second = (
        build(write(tmp_path / folder, name, how, where, value))
        for folder, how, where, value in zip("ab", hows, wheres, (3, 5), strict=True)
    )
    for _ in range(2):
        assert value_of(second) == 5
        if "import_module" not in hows:
            assert value_of(first) == 3
    assert value_of(copy.deepcopy(second)) == 5
    assert sys.path == path and importlib.import_module("random") is random
    visible = {n for n in set(sys.modules) - before if not n.startswith("sbs_user_file_")}
    assert "between" not in visible and f"{name}_parts" not in visible


def test_a_file_in_a_package_may_leave_its_folder(tmp_path):
    inner = tmp_path / "pkg" / "models"
    inner.mkdir(parents=True)
    for folder in (tmp_path / "pkg", inner):
        (folder / "__init__.py").write_text("ROOT = 1\n")
    (tmp_path / "pkg" / "common.py").write_text("VALUE = 7\n")
    (inner / "beside.py").write_text("from ..common import VALUE\n")
    (inner / "plain.py").write_text("VALUE = 7\n")
    (inner / "mine.py").write_text(
        "from . import beside\nfrom .. import ROOT, common\nfrom pkg.common import VALUE\nimport plain\n"
        "TOTAL = beside.VALUE + common.VALUE + VALUE + ROOT + plain.VALUE\n"
    )
    assert load_file(inner / "mine.py").TOTAL == 29
    assert "pkg" not in sys.modules


def test_a_folder_or_the_file_itself_does_not_hide_what_is_installed(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "colorsys.py").write_text("import colorsys\nimport torch\nHAS = hasattr(colorsys, 'rgb_to_hsv')\n")
    module = load_file(tmp_path / "colorsys.py")
    assert module.HAS and module.torch is torch


def test_an_edited_neighbour_is_read_again(tmp_path):
    for value in (1, 2, 3):
        assert value_of(build(write(tmp_path, "neighbour", "from", "top", value))) == value


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def small():\n    import nowhere_at_all\n")
    with pytest.raises(ValueError, match="nowhere_at_all"):
        build(f"{tmp_path / 'mine.py'}:small")


def test_classes_of_a_file_survive_pickling_and_pickles_find_neighbours(tmp_path):
    (tmp_path / "parts.py").write_text("from torch import nn\nclass Block(nn.Conv2d):\n    pass\n")
    (tmp_path / "mine.py").write_text(
        "import io, pickle\nfrom parts import Block\n"
        "def small():\n"
        "    return pickle.loads(open(__file__.replace('mine.py', 'whole.pkl'), 'rb').read())\n"
    )
    model = load_file(tmp_path / "mine.py").Block(3, 4, 1)
    assert type(pickle.load(io.BytesIO(pickle.dumps(model)))) is type(model)
    sys.path.insert(0, str(tmp_path))
    try:
        whole = pickle.dumps(importlib.import_module("parts").Block(3, 4, 1))
    finally:
        sys.path.pop(0)
        del sys.modules["parts"]
    (tmp_path / "whole.pkl").write_bytes(whole)
    assert isinstance(build(f"{tmp_path / 'mine.py'}:small"), nn.Conv2d)
