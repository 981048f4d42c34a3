"""Pages: what strangers wrote is text in every part, and a browser is told to load and run nothing."""

import re

from hostile import HOSTILE, assert_harmless
from PIL import Image

from clipx.pages import (
    Cell,
    Extras,
    Html,
    Point,
    contact_sheet,
    facts,
    heat_map,
    joined,
    line_chart,
    page,
    paragraph,
    picture,
    picture_map,
    point_map,
    section,
    table,
    text,
)
from clipx.pages.html import anchor


def test_text_is_never_markup() -> None:
    assert text("a < b & \"c\" 'd'") == "a &lt; b &amp; &quot;c&quot; &#x27;d&#x27;"
    assert text("one\x1b[2J") == r"one\x1b[2J"
    assert text("https://u:s3cr3t@h/0.tar") == "https://u:REDACTED@h/0.tar"
    assert text(None) == "None"
    assert isinstance(text(3), Html)


def test_every_part_of_a_page_takes_hostile_text() -> None:
    image = Image.new("RGB", (4, 3), "red")
    parts = [
        paragraph(HOSTILE),
        joined([HOSTILE, "a"], HOSTILE),
        table([HOSTILE, "b"], [[HOSTILE, HOSTILE]], caption=HOSTILE),
        facts({HOSTILE: HOSTILE}),
        section(HOSTILE, HOSTILE),
        contact_sheet([Cell(picture(image, alt=HOSTILE), HOSTILE, [HOSTILE], True), Cell(None, HOSTILE)]),
        line_chart(
            {HOSTILE: [(1, 2)], "b": [(1, 3)]},
            title=HOSTILE,
            x_label=HOSTILE,
            y_label=HOSTILE,
            extras=Extras(marks=[(1, HOSTILE)]),
        ),
        heat_map([[1.0, 0.5], [0.0, 1.0]], [HOSTILE, "b"], title=HOSTILE, rows=HOSTILE, columns=HOSTILE),
        point_map([Point((0, 0), 0, HOSTILE), Point((1, 1), -1)], [HOSTILE], title=HOSTILE, note=HOSTILE),
        picture_map([((0, 0), picture(image, alt=HOSTILE))], title=HOSTILE),
    ]
    for part in parts:
        assert isinstance(part, Html)
        assert_harmless(part)
    assert_harmless(page(HOSTILE, parts, subtitle=HOSTILE, contents=[HOSTILE]))


def test_a_page_loads_and_runs_nothing() -> None:
    html = page("a", [paragraph("b")])
    assert "default-src 'none'; img-src data:" in html.replace("&#x27;", "'")
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    assert "url(" not in html
    assert "@import" not in html


def test_only_a_page_of_a_server_has_a_script() -> None:
    html = page("a", [], script="let x = 1").replace("&#x27;", "'")
    assert "<script>let x = 1</script>" in html
    assert "connect-src 'self'" in html


def test_links_at_the_top_lead_to_sections() -> None:
    html = page("a", [section("Config and versions", "x")], contents=["Config and versions"])
    assert '<a href="#config-and-versions">' in html
    assert '<section id="config-and-versions">' in html
    assert anchor("<<>>") == "section"


def test_columns_of_numbers_stand_to_the_right() -> None:
    html = table(["name", "count", "share", "word"], [["a", 12345, "3.5%", "x"], ["b", None, "", "7"]])
    assert '<td class="n">12,345</td>' in html
    assert '<td class="n">3.5%</td>' in html
    assert "<td>x</td>" in html
    assert '<th scope="row">a</th>' in html


def test_pictures_stand_in_the_page_and_keep_their_shape() -> None:
    html = picture(Image.new("RGBA", (400, 200), (0, 0, 0, 0)), alt="none", size=100)
    assert html.startswith('<img src="data:image/jpeg;base64,')
    assert 'width="100" height="50"' in html
    assert 'width="3" height="2"' in picture(Image.new("L", (3, 2)), alt="small")


def test_right_and_wrong_are_words_and_not_colours_alone() -> None:
    html = contact_sheet([Cell(None, "a", (), True), Cell(None, "b", (), False), Cell(None, "c")])
    assert [html.count(f'verdict {word}">{word}<') for word in ("right", "wrong")] == [1, 1]
    assert html.count("no picture") == 3
