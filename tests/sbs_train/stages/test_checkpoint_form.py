"""A checkpoint of another form is refused when it is read, whatever became of it."""

import io
import math
import random
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbs_train.contract.errors import SbsError
from sbs_train.stages.checkpoint import Position, _seal
from tests.fuzz.alterations import places
from tests.sbs_train.stages.parts import checkpoint_in

HOSTILE = [
    None, True, -1, 2**70, 0.5, math.nan, math.inf, "x", [], {}, [[1]], {"a": 1}, torch.tensor(math.nan),
    torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64), torch.zeros(1).expand(10**9), torch.full((2, 3), math.inf),
]  # fmt: skip


def lay(path, content):
    """A checkpoint whose hash is right, whatever it holds."""
    path.write_bytes(content.getvalue() + _seal(content.getbuffer()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    found = checkpoint_in(tmp_path_factory.mktemp("run"), 0)
    found.save(Position(epoch=1, step=2, totals={"loss": torch.tensor(2.0)}))
    return found.path


def test_a_whole_one_is_taken(saved):
    other = checkpoint_in(saved.parents[1], 1)
    assert other.resume().step == 2
    assert torch.equal(other.parts["model"][0].weight, torch.load(saved)["state"]["model"]["0.weight"])


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1).map(random.Random), st.sampled_from(HOSTILE), st.booleans())
def test_any_other_value_is_taken_or_refused_in_one_line(saved, random, hostile, remove):
    value = torch.load(saved, weights_only=True)
    container, key = random.choice(places(value, []))
    if remove:
        del container[key]
    else:
        container[key] = hostile
    found = checkpoint_in(saved.parent / "other", 1)
    whole = io.BytesIO()
    torch.save(value, whole)
    lay(found.path, whole)
    try:
        found.resume()
    except SbsError as error:
        assert str(found.path) in str(error) and "delete it" in str(error)
        return
    for tensor in (*found.parts["model"].state_dict().values(), *found.parts["best"].payload.values()):
        assert tensor.isfinite().all()


def test_compressed_tensors_are_not_unpacked(saved, tmp_path):
    found, packed = checkpoint_in(tmp_path, 0), io.BytesIO()
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    lay(found.path, packed)
    with pytest.raises(SbsError, match=r"search\.pt: it is damaged.*compressed"):
        found.resume()
