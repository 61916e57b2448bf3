"""docs/limits.md has a row for every reason, and no other."""

from pathlib import Path

from sbs_train.contract import limits

DOCUMENT = Path(__file__).parents[3] / "docs" / "limits.md"


def rows(heading):
    section = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line.split("|")[1].strip() for line in lines[1:]]


def test_the_document_lists_every_reason():
    assert rows("Layers left in float") == list(limits.LAYERS)
    assert rows("Additions left in float") == list(limits.ADDITIONS)
    assert rows("Channels that are not pruned") == list(limits.CHANNELS)


def test_no_reason_is_missing_from_the_lists():
    reasons = {value for name, value in vars(limits).items() if name.isupper() and isinstance(value, str)}
    assert reasons == {*limits.LAYERS, *limits.ADDITIONS, *limits.CHANNELS}
