import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_folders import BLANK, BROKEN, CUT, contents, write_pairs
from servers import WebServer
from shard_files import png
from tiny_clip import tiny_pretrained

from clipx.data.inputs import open_inputs
from clipx.errors import InputError, RunError
from clipx.pretrained import Pretrained
from clipx.storage.files import write_file
from clipx.storage.locks import try_lock
from clipx.use.embed import EmbedOptions, embed
from clipx.use.embeddings import open_embeddings
from clipx.use.pca import PCA, Moments, fit
from clipx.use.queries import parse_queries

SMALL = EmbedOptions(batch_size=4, rows_per_shard=8, dtype="float32")


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def whole(pretrained: Pretrained, shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    embed(pretrained, shards, folder, options=SMALL, model="tiny")
    return folder


def test_a_folder_holds_embeddings_with_what_they_are_of(pretrained: Pretrained, whole: Path) -> None:
    embeddings = open_embeddings(whole)
    assert embeddings.image is not None
    assert embeddings.text is not None
    manifest = embeddings.manifest
    assert (manifest.model, manifest.fingerprint, manifest.embed_dim) == ("tiny", pretrained.fingerprint, 24)
    assert (manifest.num_rows, manifest.num_images, manifest.num_texts, manifest.num_left_out) == (30, 30, 29, 2)
    assert manifest.shard_rows == (7, 8, 8, 7)
    image_ND, text_ND = np.concatenate(embeddings.image), np.concatenate(embeddings.text)
    keys = embeddings.keys(range(30))
    assert [row.row for row in keys] == [i for i in range(32) if i not in (BROKEN, CUT)]
    for place, row in enumerate(keys):
        assert row.key == f"{row.row:06d}"
        image_D = pretrained.encode_image(pretrained.pixels(png(row.row), decode="fast")[None])[0].numpy()
        np.testing.assert_allclose(image_ND[place], image_D, atol=1e-6)
        if row.row == BLANK:
            assert (row.caption, row.cosine) == (None, None)
            assert not text_ND[place].any()
        else:
            np.testing.assert_allclose(text_ND[place], pretrained.encode_text(f"picture {row.row}")[0], atol=1e-6)
            assert row.cosine == pytest.approx(float(image_ND[place] @ text_ND[place]), abs=1e-6)
    left_out = [json.loads(line) for line in (whole / "left_out.jsonl").read_text().splitlines()]
    assert [(row["row"], row["reason"]) for row in left_out] == [(i, "unreadable picture") for i in (BROKEN, CUT)]
    assert left_out[0]["name"].endswith(f"00000.tar {BROKEN:06d}")


def test_half_precision_and_texts_that_are_not_wanted(pretrained: Pretrained, shards: list[str], whole: Path) -> None:
    half = whole.parent / "half"
    options = EmbedOptions(batch_size=4, rows_per_shard=8, texts=False)
    embedded = embed(pretrained, shards, half, options=options)
    assert (embedded.manifest.columns, embedded.num_new) == (("image",), 30)
    halves, full = open_embeddings(half), open_embeddings(whole)
    assert halves.text is None
    assert halves.image is not None
    assert full.image is not None
    for half_BD, full_BD in zip(halves.image, full.image, strict=True):
        assert (half_BD == full_BD.astype(np.float16)).all()
    assert halves.keys([3])[0].caption is None


def test_texts_beside_pictures_have_zeros_for_what_they_lack(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for i in range(8):
        (tmp_path / "p" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "lines.txt").write_text("\n".join(f"line {i}" for i in range(8)))
    embed(pretrained, [str(tmp_path / "p"), str(tmp_path / "lines.txt")], tmp_path / "out", options=SMALL)
    embeddings = open_embeddings(tmp_path / "out")
    assert embeddings.image is not None
    assert embeddings.text is not None
    assert [bool(x_BD.any()) for x_BD in (*embeddings.image, *embeddings.text)] == [True, False, False, True]
    assert embeddings.has("image", 0).all()
    assert not embeddings.has("image", 1).any()
    assert embeddings.has("text", 1).all()


class Killed(BaseException):
    pass


def killed_after(rows: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done >= rows:
            raise Killed

    return on_progress


def test_one_that_was_stopped_goes_on(pretrained: Pretrained, shards: list[str], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rows in (12, 20):
        with pytest.raises(Killed):
            embed(pretrained, shards, out, options=SMALL, model="tiny", on_progress=killed_after(rows))
        with pytest.raises(InputError, match="is half-written; run the same `clipx embed` again"):
            open_embeddings(out)
    (out / f".00003.image.npy.{'0' * 16}").write_bytes(b"of a write that was cut short")
    embedded = embed(pretrained, shards, out, options=SMALL, model="tiny")
    assert embedded.num_new == 15  # the shards 2 and 3
    assert contents(out) == contents(whole)
    assert embed(pretrained, shards, out, options=SMALL).num_new == 0


def test_reduced_by_a_pca_that_is_kept(pretrained: Pretrained, shards: list[str], whole: Path, tmp_path: Path) -> None:
    options = EmbedOptions(batch_size=4, rows_per_shard=8, dtype="float32", components=5)
    with pytest.raises(Killed):
        embed(pretrained, shards, tmp_path / "out", options=options, on_progress=killed_after(18))
    embed(pretrained, shards, tmp_path / "out", options=options)
    embed(pretrained, shards, tmp_path / "again", options=options)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    reduced, full = open_embeddings(tmp_path / "out"), open_embeddings(whole)
    assert reduced.pca is not None
    assert full.pca is None
    assert reduced.manifest.embed_dim == 5
    assert reduced.manifest.reduced == {
        "components": 5,
        "from_dim": 24,
        "explained_variance": reduced.pca.explained_variance,
    }
    for column in ("image", "text"):
        for reduced_BK, full_BD in zip(getattr(reduced, column), getattr(full, column), strict=True):
            np.testing.assert_allclose(reduced.project(full_BD, column), reduced_BK, atol=1e-6)
    assert [row.cosine for row in reduced.keys(range(30))] == [row.cosine for row in full.keys(range(30))]
    assert (full.project(full.image[0], "image") == full.image[0]).all()  # type: ignore[index]


def test_a_pca_is_fitted_by_one_thread(
    pretrained: Pretrained, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def counted(moments: Mapping[str, Moments], components: int, *, embed_dim: int) -> PCA:
        threads.append(torch.get_num_threads())
        return fit(moments, components, embed_dim=embed_dim)

    monkeypatch.setattr("clipx.use.shard_files.fit", counted)
    torch.set_num_threads(2)
    try:
        embed(pretrained, shards, tmp_path / "out", options=EmbedOptions(batch_size=4, components=5))
    finally:
        torch.set_num_threads(1)
    assert threads == [1]


def test_a_folder_of_something_else_is_left_alone(
    pretrained: Pretrained, shards: list[str], whole: Path, tmp_path: Path
) -> None:
    before = contents(whole)
    cases: list[tuple[Pretrained, list[str], EmbedOptions, str]] = [
        (tiny_pretrained(seed=1), shards, SMALL, "the model is another"),
        (pretrained, shards[:2], SMALL, "the inputs are others, or have changed"),
        (pretrained, shards, EmbedOptions(batch_size=4, rows_per_shard=8), "dtype was float32, now float16"),
    ]
    for model, inputs, options, message in cases:
        with pytest.raises(InputError, match=f"has embeddings of another request: .*{message}"):
            embed(model, inputs, whole, options=options)
    assert contents(whole) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else \(mine.txt\); choose a new folder"):
        embed(pretrained, shards, tmp_path, options=SMALL)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_disk_that_fills(
    pretrained: Pretrained, shards: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: str, content: bytes) -> None:
        if path.endswith("00002.text.npy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("clipx.use.embed_folder.write_file", write)
        with pytest.raises(RunError, match=r"00002.text.npy cannot be written \(No space .*; make room .* goes on"):
            embed(pretrained, shards, tmp_path / "out", options=SMALL, model="tiny")
    assert embed(pretrained, shards, tmp_path / "out", options=SMALL, model="tiny").num_new == 15
    assert contents(tmp_path / "out") == contents(whole)


def test_two_at_once(pretrained: Pretrained, shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        embed(pretrained, shards, tmp_path / "out", options=SMALL, on_progress=killed_after(1))
    lock = os.open(tmp_path / "out" / ".clipx-embed" / "lock", os.O_RDWR)
    assert try_lock(lock)
    with pytest.raises(InputError, match="is being written by process"):
        embed(pretrained, shards, tmp_path / "out", options=SMALL)
    os.close(lock)
    assert embed(pretrained, shards, tmp_path / "out", options=SMALL).num_new == 30


def test_no_row_that_is_any_good(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"the first is .*a.png: unreadable picture \(picture of 10 bytes: .*\); look"):
        embed(pretrained, [str(tmp_path / "a.png")], tmp_path / "out", options=SMALL)


def test_a_url_that_stops_answering(pretrained: Pretrained, tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(3)}
    with WebServer(files) as server:
        urls = [f"{server.url}/{name}" for name in files]
        inputs = open_inputs(urls)
        server.refusals = {"2.png": (404, {})}
        with pytest.raises(InputError, match=r"2.png cannot be read"):
            embed(pretrained, inputs, tmp_path / "out", options=SMALL)
        server.refusals = {}
        assert embed(pretrained, urls, tmp_path / "out", options=SMALL).num_new == 3


def test_names_that_are_no_utf8(pretrained: Pretrained, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    name = os.fsdecode(b"\xff.png")
    (folder / name).write_bytes(png(0))
    (folder / os.fsdecode(b"\xfe.png")).write_bytes(b"no picture")
    embed(pretrained, [str(folder)], tmp_path / "out", options=SMALL)
    embeddings = open_embeddings(tmp_path / "out")
    (row,) = embeddings.keys([0])
    assert (row.key, row.name) == (r"\udcff.png", rf"{folder}/\udcff.png")
    left_out = json.loads((tmp_path / "out" / "left_out.jsonl").read_text())
    assert left_out["name"] == str(folder / os.fsdecode(b"\xfe.png"))
    (query,) = parse_queries(embeddings, [f"key:{name}"])
    assert query.row == 0


def test_more_components_than_an_embedding_has(pretrained: Pretrained, shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pca:25: embeddings of this model have 24 numbers"):
        embed(pretrained, shards, tmp_path / "out", options=EmbedOptions(components=25))
    (tmp_path / "lines.txt").write_text("one\ntwo")
    with pytest.raises(InputError, match="pca:4 needs more than 4 embeddings, and here are 4; ask for fewer"):
        embed(pretrained, [str(tmp_path / "lines.txt")], tmp_path / "out", options=EmbedOptions(components=4))
    with pytest.raises(InputError, match="and here are 2"):
        embed(
            pretrained, [str(tmp_path / "lines.txt")], tmp_path / "out", options=EmbedOptions(components=2, texts=False)
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_in_a_store(
    pretrained: Pretrained, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"--out s3://bucket/out: .* a local disk"):
        embed(pretrained, shards, "s3://bucket/out", options=SMALL)
    assert contents(tmp_path) == {}
