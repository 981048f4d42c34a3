"""A page replaces pages of clipx's own and nothing else."""

from pathlib import Path

import pytest

from clipx.errors import InputError
from clipx.pages import page, require_own_page, write_page

PAGE = page("a", [])


def test_a_page_replaces_a_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.html"
    write_page(path, PAGE)
    write_page(path, page("b", []))
    assert "<h1>b</h1>" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["a.html"]


@pytest.mark.parametrize("content", [b"", b"<html>mine</html>", b"\xff\xd8jpeg", b"x" * 5000 + PAGE.encode()])
def test_what_somebody_else_wrote_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.html"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.html is there, and clipx did not write it; move it away"):
        write_page(path, PAGE)
    assert path.read_bytes() == content


def test_places_that_hold_no_page_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a folder; name a file"):
        require_own_page(tmp_path)
    with pytest.raises(InputError, match="is no folder; name another"):
        require_own_page(tmp_path / "file" / "a.html")
    require_own_page(tmp_path / "new" / "deeper" / "a.html")
    assert not (tmp_path / "new").exists()
