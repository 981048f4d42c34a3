"""The files of each shard of embeddings: as they are computed, and reduced at last.

Shapes: B rows of a shard, D embedding.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipx.use.embed_folder import Report, write_own, write_report
from clipx.use.embeddings import COLUMNS, REDUCTION, WORK, Column, Dtype, shard_file
from clipx.use.encode import Encoded
from clipx.use.key_table import KeyRow, encoded_keys
from clipx.use.pca import PCA, Moments, encoded_moments, fit, read_moments


class _Embedded(NamedTuple):
    """The rows of a shard that have embeddings."""

    keys: list[KeyRow]
    arrays: dict[Column, np.ndarray]
    """float32 (B, D), zeros where a row has none; only the columns of which some row has one."""
    counts: dict[Column, int]


class ShardFiles:
    """Writes the shards of one folder.

    Args:
        folder: takes them.
        dtype: of the embeddings.
        embed_dim: D.
        reduced: whether they are to be reduced when all are there; until then they stay in the work folder, in float32.
    """

    def __init__(self, folder: Path, *, dtype: Dtype, embed_dim: int, reduced: bool) -> None:
        self._folder, self._dtype, self._embed_dim, self._reduced = folder, dtype, embed_dim, reduced

    def write(self, shard: int, blocks: Sequence[Encoded]) -> int:
        """Writes a shard and, last of all, its report; returns its rows."""
        keys, arrays, counts = _joined(blocks)
        moments: dict[str, Moments] = {}
        for column, array_BD in arrays.items():
            if self._reduced:
                moments[column] = Moments.of(array_BD)
                _write_array(self._full(shard, column), array_BD)
            else:
                _write_array(self._file(shard, column), array_BD.astype(self._dtype))
        if self._reduced:
            write_own(self._moments(shard), encoded_moments(moments))
        write_own(self._folder / shard_file(shard, "parquet"), encoded_keys(keys))
        left_out = tuple(row for block in blocks for row in block.left_out)
        report = Report(rows=len(keys), images=counts["image"], texts=counts["text"], left_out=left_out)
        write_report(self._folder, shard, report)
        return report.rows

    def fit(self, components: int, shards: Iterable[int]) -> None:
        """Fits the reduction to all shards, in their order, and writes it."""
        total: dict[str, Moments] = {}
        for shard in shards:
            for kind, moments in read_moments(self._moments(shard)).items():
                total[kind] = total[kind] + moments if kind in total else moments
        pca = fit(total, components, embed_dim=self._embed_dim)
        write_own(self._folder / REDUCTION, pca.encoded())

    def finish(self, shard: int, columns: Sequence[Column], pca: PCA | None, *, rows: int) -> None:
        """Reduces a shard that is written, and gives it the columns of which it alone has nothing."""
        for column in columns:
            path, full = self._file(shard, column), self._full(shard, column)
            if path.exists():
                continue
            if pca is not None and full.exists():
                array_BD = pca.project(np.load(full, allow_pickle=False), column)
            else:
                array_BD = np.zeros((rows, len(pca.components_KD) if pca else self._embed_dim), np.float32)
            _write_array(path, array_BD.astype(self._dtype))

    def _file(self, shard: int, column: Column) -> Path:
        return self._folder / shard_file(shard, f"{column}.npy")

    def _full(self, shard: int, column: Column) -> Path:
        return self._folder / WORK / shard_file(shard, f"{column}.npy")

    def _moments(self, shard: int) -> Path:
        return self._folder / WORK / shard_file(shard, "moments.npz")


def _joined(blocks: Sequence[Encoded]) -> _Embedded:
    """All good rows of a shard's blocks."""
    arrays: dict[Column, np.ndarray] = {}
    has: dict[Column, Tensor] = {
        "image": torch.cat([block.has_image_B for block in blocks]),
        "text": torch.cat([block.has_text_B for block in blocks]),
    }
    for column in COLUMNS:
        parts = [block.image_BD if column == "image" else block.text_BD for block in blocks]
        width = next((part.shape[1] for part in parts if part is not None), None)
        if width is not None:
            empty = [torch.zeros(len(block.items), width) for block in blocks]
            filled = [zeros if part is None else part for part, zeros in zip(parts, empty, strict=True)]
            arrays[column] = torch.cat(filled).numpy()
    items = [item for block in blocks for item in block.items]
    cosines: list[float | None] = [None] * len(items)
    if len(arrays) == len(COLUMNS):
        both_B = (has["image"] & has["text"]).tolist()
        product_B = (arrays["image"].astype(np.float64) * arrays["text"]).sum(axis=1).tolist()
        cosines = [value if both else None for value, both in zip(product_B, both_B, strict=True)]
    keys = [
        KeyRow(item.key, item.name, item.row, item.caption, has_image, cosine)
        for item, has_image, cosine in zip(items, has["image"].tolist(), cosines, strict=True)
    ]
    return _Embedded(keys, arrays, {column: int(has[column].sum()) for column in COLUMNS})


def _write_array(path: Path, array: np.ndarray) -> None:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    write_own(path, out.getvalue())
