"""Reports, comparisons and contact sheets in a real browser: nothing fails, nothing is asked for, all is legible."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostile import HOSTILE
from PIL import Image

from clipx.pages import Cell, contact_sheet, facts, line_chart, page, picture, table, write_page
from clipx.report.compare import read_runs, write_comparison
from clipx.report.write import write_report

if TYPE_CHECKING:
    from browser import Browser, Visit


def assert_clean(visit: "Visit", path: Path) -> None:
    assert visit.errors == []
    assert visit.requests == [path.as_uri()]
    assert visit.broken == []
    assert not visit.too_wide


def test_a_report(browser: "Browser", trained: Path, tmp_path: Path) -> None:
    path = write_report(trained, tmp_path / "report.html")
    for width, dark in ((1200, False), (1200, True), (360, False)):
        visit = browser.visit(path, width=width, dark=dark)
        assert_clean(visit, path)
        assert visit.num_pictures > 50
        assert "taken for" in visit.text


def test_a_comparison(browser: "Browser", trained: Path, other: Path, tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    write_comparison(read_runs([trained, other]), path)
    visit = browser.visit(path, width=360)
    assert_clean(visit, path)
    assert "optim.lr" in visit.text


def test_a_contact_sheet_of_hostile_names(browser: "Browser", tmp_path: Path) -> None:
    image = picture(Image.new("RGB", (40, 30), "red"), alt=HOSTILE)
    sheet = contact_sheet([Cell(image, HOSTILE, [HOSTILE, "x" * 500], right) for right in (True, False, None)])
    path = tmp_path / "sheet.html"
    write_page(path, page(HOSTILE, [sheet, table([HOSTILE], [[HOSTILE * 20]])], subtitle=HOSTILE))
    visit = browser.visit(path, width=360, script="document.title")
    assert_clean(visit, path)
    assert visit.num_pictures == 3
    assert "<script>" in visit.value


def test_long_names_do_not_widen_a_page(browser: "Browser", tmp_path: Path) -> None:
    name, path = "x" * 300, tmp_path / "long.html"
    chart = line_chart({name: [(1, 1), (2, 2)]}, title=name, x_label="step", y_label="%")
    write_page(path, page("a", [facts({name: name}), chart]))
    assert_clean(browser.visit(path, width=360), path)


@pytest.mark.parametrize("dark", [False, True])
def test_pages_follow_the_scheme_that_the_person_prefers(browser: "Browser", tmp_path: Path, dark: bool) -> None:
    path = tmp_path / "a.html"
    write_page(path, page("a", []))
    colour = browser.visit(path, dark=dark, script="getComputedStyle(document.documentElement).backgroundColor").value
    assert colour == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")


def test_the_browser_would_tell(browser: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<img src=gone.png alt=gone><script>console.error('hm')</script><div style='width:9999px'>x</div>")
    visit = browser.visit(path)
    assert "hm" in visit.errors
    assert visit.requests[1:] == [(tmp_path / "gone.png").as_uri()]
    assert visit.broken == ["gone"]
    assert visit.too_wide


def test_a_page_that_smuggles_is_stopped_by_its_own_policy(browser: "Browser", tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    html = page("a", []).replace("<main>", "<main><script>document.title = 'ran'</script><img src=gone.png alt=gone>")
    path.write_text(html)
    visit = browser.visit(path, script="document.title")
    assert visit.value == "a"
    assert visit.requests == [path.as_uri()]
    assert visit.broken == ["gone"]
    assert sum("Content Security Policy" in error for error in visit.errors) == 2
