"""Finds rows of a folder of embeddings, and says what they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from clipx.errors import InputError
from clipx.use.embeddings import Column, Embeddings
from clipx.use.faiss_index import FaissIndex
from clipx.use.queries import Query, QueryEncoder, default_column
from clipx.use.search import Hits, TooFewError, search_rows

DEFAULT_K = 20
"""Rows that are found for a query unless somebody says how many."""


class Found(NamedTuple):
    """A row that was found."""

    rank: int
    """From 1."""
    score: float
    """The cosine."""
    row: int
    """Its number among the rows that have embeddings."""
    key: str
    name: str
    """What a person finds it by."""
    caption: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values; the score with the digits that float32 has."""
        return self._asdict() | {"score": round(self.score, 7)}


class Finder:
    """Searches one kind of embeddings of a folder.

    Args:
        embeddings: the folder.
        encoder: makes vectors of queries.
        by: which embeddings are searched; None means those of pictures, or of texts where there are no pictures.
        factory: of an index of faiss; None searches exactly.
        device: where products are computed.

    Raises:
        InputError: there are no embeddings of that kind, or the index cannot be had.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        encoder: QueryEncoder,
        *,
        by: Column | None = None,
        factory: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.embeddings, self.encoder = embeddings, encoder
        self.by: Column = by or default_column(embeddings)
        if self.by not in embeddings.manifest.columns:
            there = " and ".join(f"{column}s" for column in embeddings.manifest.columns)
            raise InputError(f"--by {self.by}: {embeddings.folder} has embeddings of {there} alone")
        self._device = device
        self.index = None if factory is None else FaissIndex(embeddings, by=self.by, factory=factory)

    @property
    def num_rows(self) -> int:
        """How many rows can be found."""
        manifest = self.embeddings.manifest
        return manifest.num_images if self.by == "image" else manifest.num_texts

    def find(self, queries: Sequence[Query], *, k: int | None = None) -> list[list[Found]]:
        """The best rows for each query; a row that is the query itself is not among them.

        Args:
            queries: at least one.
            k: how many; None means 20, or all if there are fewer.

        Raises:
            InputError: there are fewer, or a query has no vector.
        """
        rows = [query.row for query in queries]
        own = 0 if all(row is None for row in rows) else 1
        most = self.num_rows - own
        if k is not None and k > most:
            besides = " besides the query's own" if own else ""
            raise InputError(f"-k {k}: only {most:,} rows have {_KINDS[self.by]}{besides}; ask for at most so many")
        k = min(DEFAULT_K, most) if k is None else k
        if k < 1:
            return [[] for _ in queries]
        hits = self._search(self.encoder.vectors(queries), k + own)
        return [
            self._named(scores_K, rows_K, row, k)
            for scores_K, rows_K, row in zip(hits.score_QK.tolist(), hits.row_QK.tolist(), rows, strict=True)
        ]

    def _search(self, vectors_QD: np.ndarray, k: int) -> Hits:
        if self.index is not None:
            return self.index.search(vectors_QD, k=k)
        shards = getattr(self.embeddings, self.by)
        try:
            return search_rows(shards, vectors_QD, k=k, device=self._device)
        except TooFewError as error:
            raise InputError(
                f"{self.embeddings.folder} has {error.count:,} embeddings of {self.by}s, and its manifest says "
                f"{self.num_rows:,}; embed again"
            ) from error

    def _named(self, scores_K: Sequence[float], rows_K: Sequence[int], own: int | None, k: int) -> list[Found]:
        kept = [(score, row) for score, row in zip(scores_K, rows_K, strict=True) if row != own][:k]
        keys = self.embeddings.keys([row for _, row in kept])
        return [
            Found(rank, score, row, key.key, key.name, key.caption)
            for rank, ((score, row), key) in enumerate(zip(kept, keys, strict=True), 1)
        ]


_KINDS = {"image": "a picture", "text": "a text"}
