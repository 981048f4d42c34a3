"""What a person looks for: a text, a picture, or a row of the embeddings; and the vector of it.

    text:a red bicycle    a text
    picture:bicycle.jpg   a file, or the URL of one
    key:street/7.jpg      a row, by its key or name; by its number: row:7

Without such a beginning, what is a picture's file or a URL is a picture, what is a key or a name of the set is that
row, and anything else is a text.

Shapes: Q queries, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from clipx.data.inputs import open_inputs
from clipx.data.rows.folders import is_picture
from clipx.errors import InputError
from clipx.use.embeddings import Column, Embeddings, shard_file
from clipx.use.key_table import as_stored, read_keys

if TYPE_CHECKING:
    from torch import Tensor

    from clipx.pretrained import Pretrained

Kind = Literal["text", "picture", "row"]
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class Query:
    """One thing to look for."""

    kind: Kind
    shown: str
    """As a person gave it."""
    text: str = ""
    """Of a text, what is looked for; of a picture, its file or URL."""
    data: bytes | None = None
    """Of a picture that is here already: the bytes of its file."""
    row: int | None = None


def parse_queries(embeddings: Embeddings, given: Sequence[str]) -> list[Query]:
    """What a person wrote, understood.

    Raises:
        InputError: nothing is asked for, a key that no row or several have, a file that is not there.
    """
    if not given:
        raise InputError("nothing to search for; give a text, a picture or a key of the set")
    unclear = [rest for kind, rest in map(_split, given) if kind in ("key", "")]
    rows = _rows_by_key(embeddings, unclear) if unclear else {}
    return [_parsed(embeddings, whole, rows) for whole in given]


def row_query(embeddings: Embeddings, row: int) -> Query:
    """The query for what is like a row of the set.

    Raises:
        InputError: there is no such row.
    """
    if not 0 <= row < embeddings.num_rows:
        raise InputError(f"row {row:,} is not there; rows are numbered from 0 to {embeddings.num_rows - 1:,}")
    return Query("row", embeddings.keys([row])[0].name, row=row)


def _split(whole: str) -> tuple[str, str]:
    kind, colon, rest = whole.partition(":")
    return (kind, rest) if colon and kind in ("text", "picture", "key", "row") else ("", whole)


def _parsed(embeddings: Embeddings, whole: str, rows: Mapping[str, list[int]]) -> Query:
    kind, rest = _split(whole)
    found = rows.get(rest, []) if kind in ("key", "") else []
    if kind == "row":
        if not rest.isascii() or not rest.isdecimal():
            raise InputError(f"{whole} names no row; give its number, e.g. row:7")
        return row_query(embeddings, int(rest))
    if kind == "picture" or (not kind and (rest.startswith(_WEB) or (is_picture(rest) and Path(rest).is_file()))):
        return Query("picture", rest, rest)
    if len(found) > 1:
        more = f"rows {found[0]:,} and {found[1]:,}" + (" and others" if len(found) > 2 else "")
        raise InputError(f"{rest}: {more} have this key; give a name, or row:{found[0]}")
    if found:
        return Query("row", rest, row=found[0])
    if kind == "key":
        raise InputError(f"{whole}: no row has this key or name; they stand in {embeddings.folder}/*.parquet")
    if not kind and is_picture(rest) and not any(map(str.isspace, rest)):
        raise InputError(f"{rest}: no such file, and no key of the set; for a text write text:{rest}")
    if not rest.strip():
        raise InputError("a query is empty; give a text, a picture or a key of the set")
    return Query("text", rest, rest)


def _rows_by_key(embeddings: Embeddings, wanted: Sequence[str]) -> dict[str, list[int]]:
    """For each key or name the rows that have it, at most three of them."""
    rows: dict[str, list[int]] = {key: [] for key in wanted}
    first = 0
    for shard, count in enumerate(embeddings.manifest.shard_rows):
        table = read_keys(embeddings.folder / shard_file(shard, "parquet"), columns=("key", "name"))
        for key, found in rows.items():
            stored = as_stored(key)
            for column in ("key", "name"):
                place = -1
                while len(found) < 3 and (place := table.column(column).index(stored, start=place + 1).as_py()) >= 0:
                    if first + place not in found:
                        found.append(first + place)
        first += count
    return rows


class QueryEncoder:
    """Makes vectors of queries with the model that made the embeddings, which is loaded when it is needed first.

    Args:
        embeddings: what the vectors will be compared with.
        model: None means the one that the folder names.
        weights: of a run's checkpoint.
        device: the device for the model.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        *,
        model: str | Path | None = None,
        weights: Literal["average", "trained"] | None = None,
        device: str = "cpu",
    ) -> None:
        self._embeddings, self._weights, self._device = embeddings, weights, device
        self._model = model or embeddings.manifest.model

    @cached_property
    def pretrained(self) -> "Pretrained":
        """The model.

        Raises:
            InputError: it is not there, or not the one of the embeddings.
        """
        from clipx.pretrained import load

        manifest, folder = self._embeddings.manifest, self._embeddings.folder
        if not self._model:
            raise InputError(f"{folder} does not say by which model it was made; name it: --model MODEL")
        pretrained = load(self._model, device=self._device, weights=self._weights)
        if pretrained.fingerprint != manifest.fingerprint:
            raise InputError(
                f"{self._model} (fingerprint {pretrained.fingerprint[:8]}) is not the model that made {folder} "
                f"({manifest.model or 'unnamed'}, {manifest.fingerprint[:8]}); give that one, or embed with this one"
            )
        return pretrained

    def vectors(self, queries: Sequence[Query]) -> np.ndarray:
        """The queries as float32 (Q, D), of unit length.

        Raises:
            InputError: the model is not that of the embeddings, or a picture cannot be read.
        """
        return np.stack([self._vector(query) for query in queries])

    def _vector(self, query: Query) -> np.ndarray:
        if query.row is not None:
            return self._stored(query.row)
        if query.kind == "text":
            full_BD = self.pretrained.encode_text(query.text)
        else:
            data = query.data if query.data is not None else picture_bytes(query.text)
            full_BD = self._encoded_picture(data, query.shown)
        column: Column = "text" if query.kind == "text" else "image"
        return self._embeddings.project(full_BD.float().cpu().numpy(), column)[0]

    def _encoded_picture(self, data: bytes, shown: str) -> "Tensor":
        from clipx.data.decode import UndecodableError

        decode: Literal["pil", "fast"] = "fast" if self._embeddings.manifest.decode == "fast" else "pil"
        try:
            pixels_SSC = self.pretrained.pixels(data, decode=decode)
        except UndecodableError as error:
            raise InputError(f"{shown} is no picture that can be read ({error}); give another") from error
        return self.pretrained.encode_image(pixels_SSC[None])

    def _stored(self, row: int) -> np.ndarray:
        """A row's own embedding: of its picture if it has one."""
        shard, place = self._embeddings.place(row)
        for shards in (self._embeddings.image, self._embeddings.text):
            if shards is not None and (vector_D := np.asarray(shards[shard][place], np.float32)).any():
                return vector_D
        raise InputError(f"row {row:,} has no embedding; embed again")


def picture_bytes(address: str) -> bytes:
    """The bytes of a picture's file or URL.

    Raises:
        InputError: it is not there, or does not answer.
    """
    from clipx.data.rows.row import LeftOutError

    if not address.startswith(_WEB) and not Path(address).is_file():
        raise InputError(f"{address}: no such file; give a picture")
    try:
        data = open_inputs([address]).read(0).image
    except LeftOutError as error:
        raise InputError(f"{address} cannot be read ({error.reason} {error.detail}); give another") from error
    if data is None:
        raise InputError(f"{address} is no picture; give one, or write text:{address}")
    return data


def default_column(embeddings: Embeddings) -> Column:
    """Pictures where there are any, else texts."""
    return "image" if embeddings.image is not None else "text"
