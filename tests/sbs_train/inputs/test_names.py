"""Names of shards, as webdataset writes them out, but counted first."""

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from webdataset.shardlists import expand_urls

from sbs_train.contract import bounds
from sbs_train.contract.errors import SbsError
from sbs_train.inputs.data import names
from tests.bounded import bounded


def test_braces_and_colons():
    assert names.expand("a-{00..02}.tar::http://h/b.tar") == ["a-00.tar", "a-01.tar", "a-02.tar", "http://h/b.tar"]
    assert names.expand("{train,val}/{0..1}.tar") == ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]


@pytest.mark.parametrize("pattern", ["a-{000..", "a-${NOWHERE}.tar"])
def test_malformed_names_are_refused(pattern):
    with pytest.raises(SbsError, match=r"numbered shards as name-\{000..009\}.tar"):
        names.expand(pattern)


RANGES = st.builds("{{{}..{}}}".format, st.integers(-12, 12), st.integers(-12, 12))
STEPS = st.builds("{{{}..{}..{}}}".format, st.integers(0, 30), st.integers(0, 30), st.integers(0, 4))
PATTERNS = st.recursive(
    st.sampled_from(["a", "b-", ",", "\\\\,", "", "{c..e}", "{001..012}", "{x}", ".."]) | RANGES | STEPS,
    lambda inner: (
        st.builds(lambda parts: "{" + ",".join(parts) + "}", st.lists(inner, max_size=3))
        | st.builds("".join, st.lists(inner, max_size=3))
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(PATTERNS)
def test_names_are_those_of_webdataset_and_counted_before(pattern):
    try:
        counted = sum(map(names._count, pattern.split("::")))
    except SbsError:
        reject()  # webdataset would write them all out
    assume(counted <= 3000)
    expected = expand_urls(pattern)
    assert names.expand(pattern) == expected
    assert counted == len(expected)


@pytest.mark.parametrize(
    "pattern",
    [
        "x-{0..99999999}.tar",
        "{x-{0..99999999}.tar,y}",
        "{{{0..99999999}}}.tar",
        "x{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}{0..9}.tar",
        "{a,b}" * 60,
        "{" + "{a,b}" * 60 + ",c}",
        "{a..z}" * 40,
        "{x,{" + "{0..9}" * 30 + "}}",
        "::".join(["{1..299999}"] * 2),
        "{0.." + "9" * 900 + "}",
        "{" + "9" * 450 + "..0..-1}",
        "{0..9999999..2}",
        "{-99999999..0}",
        "a" * 2000,
        "a::" + "0" * 1001,
        "{" * 499 + "}" * 500,
    ],
)
def test_more_names_than_shards_are_refused(pattern):
    said = bounded(names.expand, pattern)
    assert said.startswith("refused: ") and "\n" not in said and len(said) < 1500, said


def test_a_variable_may_hold_no_more(monkeypatch):
    monkeypatch.setenv("WDS_ALL", "{0..99999999}")
    assert bounded(names.expand, "x-${ALL}.tar").startswith("refused: the shards that --data names are")
    monkeypatch.setenv("WDS_ALL", "${ALL}${ALL}")
    assert bounded(names.expand, "x-${ALL}.tar").startswith("refused: ")


def test_the_largest_public_sets_may_be_named():
    assert len(names.expand("{train-{000000..231348}.tar,val-{00..63}.tar}")) == 231349 + 64 <= bounds.SHARDS
