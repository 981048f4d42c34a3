import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from search_folders import COUNT, NASTY, Searched, write_searched
from servers import WebServer
from stored_averages import stored
from tiny_clip import encoded, picture

from clipx import cli
from clipx.errors import InputError
from clipx.printable import printable
from clipx.use import faiss_index
from clipx.use.embed import embed
from clipx.use.embeddings import open_embeddings
from clipx.use.find import Finder
from clipx.use.pictures import Pictures, thumbnail
from clipx.use.queries import Query, QueryEncoder, parse_queries


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return write_searched(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def encoder(searched: Searched) -> QueryEncoder:
    return QueryEncoder(searched.embeddings)


@pytest.fixture
def clipx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `clipx search ARGUMENTS` in this process; gives its exit code, and what it printed on stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipx", "search", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        return exit_info.value.code, *capsys.readouterr()

    return run


def expected(searched: Searched, vector_D: np.ndarray, *, by: str = "image") -> list[int]:
    rows_ND = np.concatenate(getattr(searched.embeddings, by))
    return [int(row) for row in np.argsort(-(rows_ND @ vector_D), kind="stable") if rows_ND[row].any()]


def test_a_text_a_picture_and_a_key_find_what_is_like_them(searched: Searched, encoder: QueryEncoder) -> None:
    path = str(searched.pictures / "dir" / "04.png")
    queries = parse_queries(searched.embeddings, ["a red bicycle", path, "dir/07.png"])
    assert [query.kind for query in queries] == ["text", "picture", "row"]
    found = Finder(searched.embeddings, encoder).find(queries, k=COUNT - 1)
    text_D = searched.pretrained.encode_text("a red bicycle")[0].numpy()
    image_D = searched.pretrained.encode_image(picture(4))[0].numpy()
    assert [row.row for row in found[0]] == expected(searched, text_D)[:-1]
    assert [row.row for row in found[1]] == expected(searched, image_D)[:-1]
    assert [row.row for row in found[2]] == expected(searched, np.concatenate(searched.embeddings.image or [])[7])[1:]
    best = found[1][0]
    assert (best.rank, best.row, best.key, best.caption) == (1, 4, "dir/04.png", "picture number 4")
    assert best.score == pytest.approx(1, abs=1e-6)


def test_what_is_meant_can_be_said(searched: Searched) -> None:
    embeddings, path = searched.embeddings, searched.pictures / "dir" / "04.png"
    given = ["text:dir/04.png", f"picture:{path}", "key:dir/04.png", f"key:{path}", "row:4", "text:text:x"]
    assert parse_queries(embeddings, given) == [
        Query("text", "dir/04.png", "dir/04.png"),
        Query("picture", str(path), str(path)),
        Query("row", "dir/04.png", row=4),
        Query("row", str(path), row=4),
        Query("row", str(path), row=4),
        Query("text", "text:x", "text:x"),
    ]


def test_texts_are_searched_if_asked_for_or_if_there_are_no_pictures(
    searched: Searched, encoder: QueryEncoder, tmp_path: Path
) -> None:
    text_D = searched.pretrained.encode_text("picture number 5")[0].numpy()
    [found] = Finder(searched.embeddings, encoder, by="text").find([Query("text", "", "picture number 5")])
    assert [row.row for row in found] == expected(searched, text_D, by="text")  # all that have a text, not 20
    assert (len(found), found[0].row) == (COUNT - 1, 5)
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree")
    embed(searched.pretrained, [str(tmp_path / "lines.txt")], tmp_path / "out")
    texts = open_embeddings(tmp_path / "out")
    [found] = Finder(texts, QueryEncoder(texts, model=searched.model)).find([Query("text", "", "two")], k=1)
    assert found[0].caption == "two"
    with pytest.raises(InputError, match=r"--by image: .* has embeddings of texts alone"):
        Finder(texts, encoder, by="image")
    with pytest.raises(InputError, match="out does not say by which model it was made; name it: --model MODEL"):
        Finder(texts, QueryEncoder(texts)).find([Query("text", "", "two")])


def test_a_folder_that_was_reduced_reduces_queries(tmp_path: Path) -> None:
    reduced = write_searched(tmp_path, components=5)
    finder = Finder(reduced.embeddings, QueryEncoder(reduced.embeddings))
    [found] = finder.find(parse_queries(reduced.embeddings, [str(reduced.pictures / "dir" / "04.png")]), k=1)
    assert (found[0].row, reduced.embeddings.manifest.embed_dim) == (4, 5)
    assert found[0].score == pytest.approx(1, abs=1e-5)


def test_the_command_prints_and_writes(searched: Searched, clipx: Any, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("found.json", "sub/found.csv", "found.html")]
    for _ in range(2):  # the second replaces
        code, out, err = clipx(
            *(searched.embeddings.folder, "text:a red bicycle", "row:3", "-k", 10),
            *("--json", files[0], "--csv", files[1], "--html", files[2]),
        )
        assert (code, err) == (0, "")
    assert out.count("│ 10 │") == 2
    assert "text: a red bicycle" in out
    assert printable(NASTY) in out
    results = json.loads(files[0].read_text())["results"]
    assert [(result["query"], result["kind"], len(result["hits"])) for result in results] == [
        ("a red bicycle", "text", 10),
        (str(searched.pictures / "dir" / "03.png"), "row", 10),
    ]
    assert 3 not in [hit["row"] for hit in results[1]["hits"]]
    lines = list(csv.DictReader(files[1].open()))
    assert [int(line["row"]) for line in lines] == [hit["row"] for result in results for hit in result["hits"]]
    page = files[2].read_text()
    assert page.count('<img src="data:image/jpeg') == 20
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_browser_shows_the_page(searched: Searched, clipx: Any, tmp_path: Path) -> None:
    """All pictures, in any light and width, and asks nobody for anything."""
    path = tmp_path / "found.html"
    with chromium() as browser:
        assert clipx(searched.embeddings.folder, "text:a red bicycle", "row:3", "-k", 10, "--html", path)[0] == 0
        visits = [browser.visit(path), browser.visit(path, dark=True), browser.visit(path, width=360)]
    for seen in visits:
        assert (seen.errors, seen.broken, seen.num_pictures) == ([], [], 20)
        assert seen.requests == [path.as_uri()]
        assert not seen.too_wide
        assert "<script>alert(1)</script>" in seen.text


def test_pictures_that_are_gone_or_others_leave_grey_cells(searched: Searched, clipx: Any, tmp_path: Path) -> None:
    moved = searched.pictures / "dir" / "06.png"
    hidden, page = moved.rename(tmp_path / "06.png"), tmp_path / "found.html"
    try:
        code, _, _ = clipx(searched.embeddings.folder, "row:0", "-k", 10, "--html", page)
    finally:
        hidden.rename(moved)
    # the rows behind it have other numbers now: their pictures must not stand under these names
    assert (code, page.read_text().count("<img src")) == (0, 5)
    assert page.read_text().count("no picture") == 5
    away = searched.pictures.rename(tmp_path / "away")
    try:
        code, _, _ = clipx(searched.embeddings.folder, "row:0", "-k", 10, "--html", page)
    finally:
        away.rename(searched.pictures)
    assert (code, page.read_text().count("<img src")) == (0, 0)
    assert f"No pictures: {searched.pictures}" in page.read_text()


def test_pictures_are_found_from_any_folder(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(searched.pictures.parent)
    embed(searched.pretrained, ["pictures/dir/02.png", "pictures"], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    pictures = Pictures(open_embeddings("out"))
    assert pictures.problem == ""
    assert pictures.thumbnail(0).tobytes() == picture(2).tobytes()  # type: ignore[union-attr]
    assert pictures.thumbnail(8).tobytes() == picture(7).tobytes()  # type: ignore[union-attr]


def test_thumbnails_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    buffer = io.BytesIO()
    Image.new("RGB", (60, 20), "red").save(buffer, "JPEG", exif=exif)
    assert thumbnail(buffer.getvalue(), 30).size == (10, 30)


def refused(clipx: Any, *arguments: object) -> str:
    """The message of a command that ends with exit code 2 and says so in one line."""
    code, out, err = clipx(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("clipx: error: ")


def test_what_is_wrong_is_said_in_one_line(searched: Searched, clipx: Any, tmp_path: Path) -> None:
    folder = searched.embeddings.folder
    (tmp_path / "no.png").write_text("no picture")
    (tmp_path / "theirs.csv").write_text("a,b\n1,2\n")
    (tmp_path / "theirs.html").write_text("<p>mine</p>")
    for arguments, message in [
        ([], "nothing to search for; give a text, a picture or a key of the set"),
        (["cat", "-k", 12], "-k 12: only 11 rows have a picture; ask for at most so many"),
        (["cat", "-k", 11, "--by", "text"], "-k 11: only 10 rows have a text; ask for at most so many"),
        (["row:1", "-k", 11], "-k 11: only 10 rows have a picture besides the query's own; ask for at most so many"),
        (["row:11"], "row 11 is not there; rows are numbered from 0 to 10"),
        (["row:x"], "row:x names no row; give its number, e.g. row:7"),
        (["key:nobody"], "key:nobody: no row has this key or name"),
        (["dir/99.png"], "dir/99.png: no such file, and no key of the set; for a text write text:dir/99.png"),
        (["picture:absent.png"], "absent.png: no such file; give a picture"),
        ([tmp_path / "no.png"], f"{tmp_path}/no.png is no picture that can be read (picture of 10 bytes: "),
        (["text: "], "a query is empty; give a text, a picture or a key of the set"),
        (["cat", "--index", "annoy:5"], "--index annoy:5: write faiss:FACTORY, e.g. faiss:IVF256,Flat"),
        (["cat", "--csv", tmp_path / "theirs.csv"], f"--csv {tmp_path}/theirs.csv: a file is there that holds no rows"),
        (["cat", "--html", tmp_path / "theirs.html"], f"{tmp_path}/theirs.html is there, and clipx did not write it"),
        (["cat", "--serve"], "--serve takes no QUERY and writes no file; ask on its page"),
        (["cat", "--model", tmp_path / "absent"], f"{tmp_path}/absent: no such folder"),
    ]:
        assert refused(clipx, folder, *arguments).startswith(message)
    assert (tmp_path / "theirs.csv").read_text() == "a,b\n1,2\n"
    assert (tmp_path / "theirs.html").read_text() == "<p>mine</p>"


def test_a_url_is_a_picture(searched: Searched, encoder: QueryEncoder, clipx: Any) -> None:
    with WebServer({"6.png": encoded(picture(6))}) as server:
        [found] = Finder(searched.embeddings, encoder).find(
            parse_queries(searched.embeddings, [f"{server.url}/6.png"]), k=1
        )
        assert found[0].row == 6
        assert refused(clipx, searched.embeddings.folder, f"{server.url}/7.png").startswith(
            f"{server.url}/7.png cannot"
        )
    message = refused(clipx, searched.embeddings.folder, f"{server.url}/6.png")
    assert message.startswith(f"{server.url}/6.png cannot be read (")


def test_another_model_is_refused_and_none_is_needed_for_keys(searched: Searched, clipx: Any, tmp_path: Path) -> None:
    stored(tmp_path / "other", seed=1)
    message = refused(clipx, searched.embeddings.folder, "cat", "--model", tmp_path / "other")
    assert message.startswith(f"{tmp_path}/other (fingerprint ")
    assert "is not the model that made" in message
    assert clipx(searched.embeddings.folder, "row:1", "--model", tmp_path / "other")[0] == 0


def test_several_rows_with_one_key(searched: Searched, tmp_path: Path) -> None:
    embed(searched.pretrained, [str(searched.pictures), str(searched.pictures)], tmp_path / "twice")
    twice = open_embeddings(tmp_path / "twice")
    with pytest.raises(InputError, match=r"dir/04.png: rows 4 and 15 have this key; give a name, or row:4"):
        parse_queries(twice, ["dir/04.png"])


def test_an_index_of_faiss_is_built_once(
    searched: Searched, encoder: QueryEncoder, clipx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    folder = searched.embeddings.folder
    [exact] = Finder(searched.embeddings, encoder).find([Query("row", "", row=2)], k=5)
    finder = Finder(searched.embeddings, encoder, factory="HNSW8")
    assert finder.index is not None
    [found] = finder.find([Query("row", "", row=2)], k=5)
    assert found == exact  # all of eleven rows are proposed
    written = finder.index.path.stat().st_mtime_ns
    code, out, _ = clipx(folder, "row:2", "-k", 5, "--index", "faiss:HNSW8")
    assert (code, finder.index.path.stat().st_mtime_ns) == (0, written)
    assert "approximate, by faiss-image-HNSW8-" in out
    assert refused(clipx, folder, "cat", "--index", "faiss:nonsense").startswith("--index faiss:nonsense: faiss knows")
    assert refused(clipx, folder, "cat", "--index", "faiss:IVF4096,Flat").startswith("--index faiss:IVF4096,Flat: ")
    for factory in ("HNSW0", "IVF0,Flat", "PCA00,Flat"):
        assert refused(clipx, folder, "cat", "--index", f"faiss:{factory}") == (
            f"--index faiss:{factory}: a number of 0 makes no index; e.g. faiss:IVF256,Flat\n"
        )
    monkeypatch.setattr(faiss_index, "_PROBES", 1)
    with pytest.raises(InputError, match=r"-k 10: faiss-image-IVF2,Flat-\w+.index finds only \d rows for a query; ask"):
        Finder(searched.embeddings, encoder, factory="IVF2,Flat").find([Query("row", "", row=2)], k=9)
    [by_text] = Finder(searched.embeddings, encoder, by="text", factory="Flat").find([Query("row", "", row=2)])
    assert COUNT - 1 not in [row.row for row in by_text]  # it has no text
