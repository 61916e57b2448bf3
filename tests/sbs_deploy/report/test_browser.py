"""The pages in a browser: they load from disk without a complaint or a request, draw, sort, filter and change theme."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sbs_deploy.report.comparison import compare
from sbs_deploy.report.ledger import make_ledger
from sbs_deploy.report.page import page_from_ledger, page_from_runs
from tests.sbs_deploy.report.chromium import Tab, assert_sound, open_tab
from tests.sbs_deploy.report.histories import record_history, search_rows
from tests.sbs_deploy.report.runs import measured_run

pytest.importorskip("websocket")
CELLS = "[...document.querySelectorAll('#layers-1 tbody tr:not([hidden])')].map((row) => row.cells[{}].textContent)"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with open_tab() as tab:
        yield tab


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose names try to get out, with everything that a report can show."""
    run = measured_run(tmp_path_factory.mktemp("one") / "run", model_name="</script><img src=x onerror=alert(1)>")
    record_history(run, search_rows())
    run.report.write_text(page_from_ledger(make_ledger(run)))
    return run.report


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    ledgers = [make_ledger(measured_run(root / name, int8_ms=ms)) for name, ms in (("a", 5.0), ("b", 4.0))]
    (root / "runs.html").write_text(page_from_runs(compare(ledgers)))
    return root / "runs.html"


def column(tab: Tab, index: int) -> list[str]:
    """Cells of the layer table that are shown."""
    found: list[str] = tab.run(CELLS.format(index))
    return found


def click_head(tab: Tab, index: int) -> str | None:
    """Sort by a column; what its head then says of the order."""
    head = f"document.querySelectorAll('#layers-1 thead th')[{index}]"
    tab.run(f"{head}.querySelector('button').click()")
    order: str | None = tab.run(f"{head}.getAttribute('aria-sort')")
    return order


@pytest.mark.parametrize(("dark", "width"), [(False, 1280), (True, 1280), (False, 390), (True, 390)])
def test_report_loads(tab: Tab, report: Path, dark: bool, width: int) -> None:
    tab.open(report, dark=dark, width=width)
    assert_sound(tab, report, charts=8)
    background = tab.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 20, 22)" if dark else "rgb(248, 249, 250)")
    assert tab.run("document.images.length") == 0 and "<img src=x" in tab.run(
        "document.querySelector('h1').textContent"
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_runs_load(tab: Tab, runs: Path, width: int) -> None:
    tab.open(runs, width=width)
    assert_sound(tab, runs, charts=3)
    assert tab.run("document.querySelectorAll('#runs tbody tr').length") == 2


def test_layers_sort(tab: Tab, report: Path) -> None:
    tab.open(report)
    assert column(tab, 0) == ["conv1", "conv2", "conv3", "fc"]
    assert click_head(tab, 9) == "ascending" and column(tab, 9) == ["0.5", "0.5", "1.00", "2.50"]
    assert click_head(tab, 9) == "descending" and column(tab, 0)[:2] == ["conv3", "conv2"]
    assert click_head(tab, 6) == "ascending", "numbers, whatever their prefix"
    assert column(tab, 6) == ["164 k", "1.18 M", "1.77 M", "9.44 M"]
    assert tab.run("document.querySelectorAll('#layers-1 [aria-sort]').length") == 1


def test_layers_filter(tab: Tab, report: Path) -> None:
    tab.open(report)
    box = "document.querySelector('[data-filters=layers-1]')"
    typed = f"{box}.querySelector('input').value = 'CONV 2/4'; {box}.querySelector('input')"
    tab.run(f"{typed}.dispatchEvent(new Event('input'))")
    assert column(tab, 0) == ["conv2"]
    assert tab.run(f"{box}.querySelector('output').textContent") == "1 of 4"
    tab.run(f"{box}.querySelector('input').value = ''; {box}.querySelector('select').value = 'not faster'")
    tab.run(f"{box}.querySelector('select').dispatchEvent(new Event('change'))")
    assert column(tab, 0) == ["conv3"]


def test_theme_changes_and_stays_off_paper(tab: Tab, report: Path) -> None:
    tab.open(report, dark=True)
    ink = "getComputedStyle(document.querySelector('#plan .xtick text, #plan .ytick text')).fill"
    dark = tab.run(ink)
    tab.run("document.getElementById('theme').click()")
    assert tab.run("document.documentElement.dataset.theme") == "light" and tab.run(ink) != dark
    tab.run("document.getElementById('theme').click()")
    assert tab.run(ink) == dark
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run("document.documentElement.dataset.theme") == "light"
    tab.run("dispatchEvent(new Event('afterprint'))")
    assert tab.run("document.documentElement.dataset.theme") == "dark"
    assert len(tab.pdf()) > 10_000 and tab.complaints == []


def test_codes_of_a_layer_are_chosen(tab: Tab, report: Path) -> None:
    tab.open(report)
    bars = "document.querySelectorAll('#codes .point').length"
    assert tab.run("document.querySelector('#codes').data.filter((trace) => trace.visible).length") == 1
    tab.run("const box = document.querySelector('[data-trace-of=codes]'); box.selectedIndex = 3;")
    tab.run("document.querySelector('[data-trace-of=codes]').dispatchEvent(new Event('change'))")
    chosen = "document.querySelector('#codes').data.find((trace) => trace.visible).name"
    assert tab.run(chosen) == "conv2" and tab.run(bars) == 15
