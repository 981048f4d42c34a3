import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_folders import contents, write_pairs
from tiny_clip import tiny_pretrained

from clipx.errors import InputError
from clipx.use.embed import EmbedOptions, embed
from clipx.use.embeddings import open_embeddings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    embed(
        tiny_pretrained(),
        write_pairs(tmp_path / "pairs"),
        tmp_path / "out",
        options=EmbedOptions(batch_size=4, rows_per_shard=8),
    )
    return tmp_path / "out"


def test_keys_in_any_order(folder: Path) -> None:
    embeddings = open_embeddings(folder)
    assert [row.row for row in embeddings.keys([29, 0, 8, 0])] == [31, 0, 9, 0]
    assert embeddings.keys([]) == []
    with pytest.raises(IndexError):
        embeddings.keys([30])


def test_arrays_are_mapped(folder: Path) -> None:
    embeddings = open_embeddings(str(folder))
    assert embeddings.image is not None
    assert all(isinstance(x_BD, np.memmap) and x_BD.dtype == np.float16 for x_BD in embeddings.image)


def changed(folder: Path, **values: Any) -> None:
    path = folder / "embeddings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_is_no_folder_of_embeddings(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "pairs", tmp_path / "none", folder / "00000.parquet"):
        with pytest.raises(InputError, match="holds no embeddings; make some: clipx embed"):
            open_embeddings(place)
    before = contents(folder)
    for values, message in (
        ({"format": 2}, "has format 2, and this clipx reads 1"),
        ({"num_rows": 31}, "is damaged"),
        ({"strange": 1}, "is damaged"),
        ({"embed_dim": 23}, r"00000.image.npy holds float16 \(7, 24\), and embeddings.json says float16 \(7, 23\)"),
    ):
        (folder / "embeddings.json").write_bytes(before["embeddings.json"])
        changed(folder, **values)
        with pytest.raises(InputError, match=message):
            open_embeddings(folder)
    (folder / "embeddings.json").write_bytes(before["embeddings.json"][:40])
    with pytest.raises(InputError, match="is damaged"):
        open_embeddings(folder)
    (folder / "embeddings.json").write_bytes(before["embeddings.json"])
    (folder / "00001.text.npy").write_bytes(before["00001.text.npy"][:200])
    with pytest.raises(InputError, match=r"00001.text.npy cannot be read"):
        open_embeddings(folder)
    (folder / "00001.text.npy").unlink()
    with pytest.raises(InputError, match=r"00001.text.npy is not there"):
        open_embeddings(folder)
