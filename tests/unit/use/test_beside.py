import errno
import os
from pathlib import Path

import pytest
from embedding_folders import BLANK, BROKEN, CUT, write_pairs
from shard_files import write_shards
from tiny_clip import tiny_pretrained

from clipx.data.filters.filters import SampleFilter
from clipx.data.index.shard_index import build_index
from clipx.data.inputs import open_inputs
from clipx.errors import InputError, RunError
from clipx.use.beside import require_beside, write_beside
from clipx.use.embed import EmbedOptions, embed
from clipx.use.embeddings import Embeddings, open_embeddings

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_pairs(tmp_path / "s")


@pytest.fixture
def embeddings(tmp_path: Path, shards: list[str]) -> Embeddings:
    embed(tiny_pretrained(), shards, tmp_path / "out", options=EmbedOptions(batch_size=4, rows_per_shard=8))
    return open_embeddings(tmp_path / "out")


def test_pairs_that_do_not_match_never_train(tmp_path: Path, shards: list[str], embeddings: Embeddings) -> None:
    require_beside(open_inputs(shards).shards())
    assert write_beside(embeddings, shards) == 3
    rows = embeddings.keys(range(embeddings.num_rows))
    cosines = sorted(row.cosine for row in rows if row.cosine is not None)
    median = cosines[len(cosines) // 2]
    where = SampleFilter.parse([f"parquet:cosine>={median}"])
    index = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=where)
    kept = [index.offsets(shard).key(place) for shard in range(3) for place in range(index.counts[shard])]
    assert kept == [row.key for row in rows if row.cosine is not None and row.cosine >= median]
    assert sum(index.left_out.values()) == 32 - len(kept)
    assert index.left_out["no parquet:cosine"] == len((BROKEN, BLANK, CUT))


def test_a_shard_of_which_nothing_was_embedded(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "s", [4, 2], replaced={i: {"png": b"no picture", "txt": b"a"} for i in (4, 5)})
    before = pyarrow.table({"key": ["000005"], "cosine": [0.9]}).replace_schema_metadata({"clipx.cosine_of": "older"})
    parquet.write_table(before, Path(shards[1]).with_suffix(".parquet"))
    embed(tiny_pretrained(), shards, tmp_path / "out", options=EmbedOptions(batch_size=4))
    assert write_beside(open_embeddings(tmp_path / "out"), shards) == 2
    assert parquet.read_table(Path(shards[1]).with_suffix(".parquet")).column("cosine").to_pylist() == [None]
    Path(shards[1]).with_suffix(".parquet").unlink()
    write_beside(open_embeddings(tmp_path / "out"), shards)
    where = SampleFilter.parse(["parquet:cosine>=-1"])
    index = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=where)
    assert (sum(index.counts), index.left_out["no parquet:cosine"]) == (4, 2)


def test_a_parquet_file_that_is_there_keeps_all_it_has(shards: list[str], embeddings: Embeddings) -> None:
    path = Path(shards[0]).with_suffix(".parquet")
    keys = [f"{i:06d}" for i in (3, 1, 11, 400)]
    theirs = pyarrow.table({"key": keys, "url": ["u3", "u1", "u11", "u400"], "similarity": [0.1, None, 0.3, 0.4]})
    parquet.write_table(theirs.replace_schema_metadata({"made": "elsewhere"}), path)
    write_beside(embeddings, shards)
    written = path.read_bytes()
    table = parquet.read_table(path)
    assert table.drop_columns(["cosine"]).equals(theirs)
    assert table.schema.metadata[b"made"] == b"elsewhere"
    by_key = {row.key: row.cosine for row in embeddings.keys(range(embeddings.num_rows))}
    assert table.column("cosine").to_pylist() == [by_key.get(key) for key in keys]
    write_beside(embeddings, shards)  # of its own column it may take the place
    assert path.read_bytes() == written


def test_what_is_in_the_way(tmp_path: Path, shards: list[str], embeddings: Embeddings) -> None:
    path = Path(shards[1]).with_suffix(".parquet")
    for content, message in (
        (pyarrow.table({"key": ["000012"], "cosine": [0.1]}), "has a column 'cosine' that clipx did not write"),
        (pyarrow.table({"url": ["u"]}), "has no column 'key'"),
        (None, "is no parquet file"),
    ):
        path.write_bytes(b"rubbish") if content is None else parquet.write_table(content, path)
        before = path.read_bytes()
        with pytest.raises(InputError, match=rf"00001.parquet {message}"):
            require_beside(shards)
        with pytest.raises(InputError, match=rf"00001.parquet {message}"):
            write_beside(embeddings, shards)
        assert path.read_bytes() == before
    parquet.write_table(pyarrow.table({"key": ["other"]}), path)
    with pytest.raises(InputError, match="has none of the keys of its shard"):
        write_beside(embeddings, shards)


def test_a_folder_that_cannot_be_written(
    shards: list[str], embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("clipx.use.beside.write_file", full)
        with pytest.raises(RunError, match=r"00000.parquet cannot be written \(No space .*\); make room on the disk"):
            write_beside(embeddings, shards)
    monkeypatch.setattr("clipx.use.beside.os.access", lambda folder, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match=r"--beside: .* cannot be written"):
        require_beside(shards)


def test_shards_with_pictures_and_texts_are_needed(tmp_path: Path, shards: list[str]) -> None:
    with pytest.raises(InputError, match="the input has none"):
        require_beside([])
    with pytest.raises(InputError, match=r"00000.tar is given twice"):
        require_beside([*shards, shards[0]])
    options = EmbedOptions(batch_size=4, texts=False)
    embed(tiny_pretrained(), shards, tmp_path / "out", options=options)
    with pytest.raises(InputError, match="needs pictures with texts"):
        write_beside(open_embeddings(tmp_path / "out"), shards)
