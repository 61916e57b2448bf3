from pathlib import Path

import pytest

from sbs_deploy.report.comparison import compare
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.markdown import escape, markdown_from_ledger, markdown_from_runs
from tests.sbs_deploy.report.runs import measured_run


def rows_of(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_markdown_of_a_run(tmp_path: Path) -> None:
    text = markdown_from_ledger(make_ledger(measured_run(tmp_path / "run")))
    assert text.startswith("### resnet20 · run run\n\n- Score (top1): **97.75**")
    head, *rows = rows_of(text)
    assert head[0] == "stage" and [row[0] for row in rows] == [
        "fp32",
        "search",
        "finetune",
        "fp32 slim · onnxruntime",
        "int8 · onnxruntime",
    ]
    assert rows[-1][-2:] == ["5.00 ms", "2.00x"] and all(len(row) == len(head) for row in rows)
    assert "**Layers of int8 · onnxruntime, batch 1.** " in text and "not faster: 1 (2.50 ms)" in text
    assert "- Predicted gain realised: **25 %**" in text and "measured on cpu of a test" in text


def test_markdown_of_runs(tmp_path: Path) -> None:
    ledgers = [make_ledger(measured_run(tmp_path / name, int8_ms=ms)) for name, ms in (("a", 5.0), ("b", 4.0))]
    text = markdown_from_runs(compare(ledgers))
    assert "have the same plan" in text
    assert [row[0] for row in rows_of(text)] == ["run", "a", "b"]
    head, first, _ = rows_of(text)
    factors = {head[i]: first[i] for i in range(len(head)) if first[i].endswith("x")}
    assert list(factors) == ["fewer BOPs", "fewer as executed", "speed-up"]


@pytest.mark.parametrize(
    "text", ["<img src=x>", "a | b", "[x](javascript:1)", "**bold**", "`code`", "@someone", "line\nbreak", "a ~~b~~ #1"]
)
def test_nothing_of_a_name_is_markup(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped
    for i, character in enumerate(escaped):
        if character in "<>|[]*`@~#":
            assert escaped[i - 1] == "\\", escaped


def test_plain_words_stay_plain() -> None:
    assert escape("layer1.0.conv_1: 2/4-bit (0.5 ms)") == "layer1.0.conv_1: 2/4-bit (0.5 ms)"
