"""Reads what `clipx embed` wrote: a folder of embeddings in shards, memory-mapped, and of what they are.

    DIR/  embeddings.json       what it is, written last: without it the folder is not complete
          00000.image.npy       embeddings of a shard's good rows, of pictures and of texts; zeros where a row has none
          00000.text.npy
          00000.parquet         key, name, row, caption, has_image, cosine: a line for each of these rows
          left_out.jsonl        rows that have no embedding, and why
          pca.npz               what they were reduced by, if they were

Shapes: N rows of all shards, B rows of some kind, D embedding (after a reduction its components).
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clipx.config.paths import expand_home
from clipx.errors import InputError
from clipx.use.key_table import KeyRow, key_rows, read_keys

if TYPE_CHECKING:
    from clipx.use.pca import PCA

MANIFEST, LEFT_OUT, REDUCTION, WORK = "embeddings.json", "left_out.jsonl", "pca.npz", ".clipx-embed"
FORMAT = 1
Column = Literal["image", "text"]
Dtype = Literal["float16", "float32"]
COLUMNS: tuple[Column, ...] = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an embeddings folder is."""

    format: int
    fingerprint: str
    """Of the model, as `Pretrained.fingerprint`."""
    model: str
    """The model as it was given."""
    embed_dim: int
    """D."""
    dtype: Dtype
    columns: tuple[Column, ...]
    inputs: str
    """What `Inputs.identity` said."""
    decode: str
    num_rows: int
    """N, the rows that have embeddings."""
    num_images: int
    num_texts: int
    num_left_out: int
    rows_per_shard: int
    """Rows of the input that a shard stands for."""
    shard_rows: tuple[int, ...]
    """Of each shard, the rows that have embeddings."""
    reduced: dict[str, Any] | None
    """None, or components, from_dim and explained_variance of a reduction."""
    request: dict[str, Any]
    """All that decides the bytes, as `clipx embed` was asked for it."""
    source: dict[str, Any] | None = None
    """Where the inputs were, for those who show them again (`clipx.data.recorded_inputs`)."""
    complete: bool = True


def shard_file(shard: int, ending: str) -> str:
    """The name of a shard's file: `ending` is image.npy, text.npy or parquet."""
    return f"{shard:05d}.{ending}"


class Embeddings:
    """A complete folder of embeddings; nothing of it is in memory before it is asked for.

    Raises:
        InputError: a file is missing, or does not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.image = self._mapped("image")
        """Of each shard the embeddings of its pictures (B, D), unit length; None without pictures."""
        self.text = self._mapped("text")
        """Of each shard the embeddings of its texts (B, D), unit length; None without texts."""
        self._ends = list(accumulate(manifest.shard_rows))
        self._table = lru_cache(maxsize=64)(self._read_table)

    @property
    def num_rows(self) -> int:
        """N."""
        return self.manifest.num_rows

    @cached_property
    def pca(self) -> "PCA | None":
        """What the embeddings were reduced by; the same makes queries comparable with them."""
        from clipx.use.pca import PCA  # which imports torch

        return None if self.manifest.reduced is None else PCA.load(self.folder / REDUCTION)

    def project(self, full_BD: np.ndarray, column: Column) -> np.ndarray:
        """Embeddings of the model as this folder's are: reduced if these are, float32, unit length."""
        return np.asarray(full_BD, np.float32) if self.pca is None else self.pca.project(full_BD, column)

    def keys(self, rows: Sequence[int]) -> list[KeyRow]:
        """What the rows of these numbers are of, from 0 to N - 1 in any order."""
        places = sorted((self.place(int(row)), position) for position, row in enumerate(rows))
        found: dict[int, KeyRow] = {}
        for shard, group in groupby(places, key=lambda entry: entry[0][0]):
            entries = list(group)
            taken = key_rows(self._table(shard), [place for (_, place), _ in entries])
            found |= {position: row for (_, position), row in zip(entries, taken, strict=True)}
        return [found[position] for position in range(len(rows))]

    def has(self, column: Column, shard: int) -> np.ndarray:
        """Which rows of a shard have a picture, or a text: bool (B,)."""
        table = self._table(shard)
        if column == "image":
            return np.array(table.column("has_image").to_pylist(), bool)
        return np.array([caption is not None for caption in table.column("caption").to_pylist()], bool)

    def place(self, row: int) -> tuple[int, int]:
        """The shard that holds a row, and the row's number in it."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        shard = bisect_right(self._ends, row)
        return shard, row - (self._ends[shard - 1] if shard else 0)

    def _read_table(self, shard: int) -> Any:
        return read_keys(self.folder / shard_file(shard, "parquet"))

    def _mapped(self, column: Column) -> list[np.ndarray] | None:
        if column not in self.manifest.columns:
            return None
        return [
            self._map(self.folder / shard_file(shard, f"{column}.npy"), rows)
            for shard, rows in enumerate(self.manifest.shard_rows)
        ]

    def _map(self, path: Path, rows: int) -> np.ndarray:
        shape, dtype = (rows, self.manifest.embed_dim), np.dtype(self.manifest.dtype)
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise InputError(f"{path} is not there, though {MANIFEST} names it; embed again") from error
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); embed again") from error
        if array.shape != shape or array.dtype != dtype:
            raise InputError(
                f"{path} holds {array.dtype} {array.shape}, and {MANIFEST} says {dtype} {shape}; embed again"
            )
        return array


def open_embeddings(folder: Path | str) -> Embeddings:
    """The embeddings that `clipx embed` wrote to a folder.

    Raises:
        InputError: there are none, they are half-written, or damaged.
    """
    folder = Path(expand_home(str(folder)))
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / WORK).is_dir():
            raise InputError(f"{folder} is half-written; run the same `clipx embed` again, it goes on where it was")
        raise InputError(f"{folder} holds no embeddings; make some: clipx embed MODEL INPUT ... --out {folder}")
    return Embeddings(folder, manifest)


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder of embeddings says of itself; None if there is nothing.

    Raises:
        InputError: it is damaged, or of another version of clipx.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise InputError(f"{path} has format {content.get('format')}, and this clipx reads {FORMAT}; embed again")
        lists = {name: tuple(content[name]) for name in ("columns", "shard_rows")}
        manifest = Manifest(**content | lists)
        if sum(manifest.shard_rows) != manifest.num_rows or not set(manifest.columns) <= {"image", "text"}:
            raise ValueError("its numbers disagree")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); embed again") from error
    return manifest
