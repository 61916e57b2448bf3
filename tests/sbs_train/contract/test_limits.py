"""docs/limits.md has a row for every reason, and no other."""

from pathlib import Path

from sbs_train.contract import limits

DOCUMENT = Path(__file__).parents[3] / "docs" / "limits.md"


def rows(heading):
    section = DOCUMENT.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line.split("|")[1].strip() for line in lines[1:]]


def test_the_document_lists_every_reason_in_order():
    reasons = [value for name, value in vars(limits).items() if name.isupper()]
    headings = ("Layers left in float", "Additions left in float", "Channels that are not pruned")
    assert reasons == [row for heading in headings for row in rows(heading)]
