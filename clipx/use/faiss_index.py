"""Approximate search by an index of faiss, built once and kept beside the embeddings; the owner of faiss.

The index proposes more rows than are wanted; their scores are computed exactly from the embeddings themselves. So a
score is always right, and what is approximate is whether a better row was overlooked.

Shapes: N rows, Q queries, D dimensions, K hits, C candidates.
"""

import os
import re
from hashlib import blake2b
from importlib import import_module
from typing import Any

import numpy as np

from clipx.errors import InputError
from clipx.use.embeddings import MANIFEST, Column, Embeddings
from clipx.use.search import Hits, TooFewError, fresh_rows

_TRAINING_ROWS = 131_072
"""A sample of the rows: 268 MB at 512 dimensions."""
_BLOCK = 65_536
"""Rows that are added at once."""
_PROPOSED = 4
"""Rows that the index proposes for each that is wanted."""
_PROBES = 16
"""Cells of an inverted file that a query looks at; faiss's default, 1, overlooks most."""


class FaissIndex:
    """An index over one kind of embeddings; built if it is not there.

    Args:
        embeddings: what is searched.
        by: the kind.
        factory: faiss's name for the index, e.g. IVF256,Flat or HNSW32.

    Raises:
        InputError: faiss is not installed or knows no such index, there are too few rows for it, or it cannot be
            written.
    """

    def __init__(self, embeddings: Embeddings, *, by: Column, factory: str) -> None:
        self._faiss = _faiss()
        self._shards = getattr(embeddings, by)
        self.path = embeddings.folder / _file_name(embeddings, by, factory)
        self.is_new = not self.path.is_file()
        self._index = self._built(embeddings, factory) if self.is_new else self._read()
        self._probe()

    def search(self, queries_QD: np.ndarray, *, k: int) -> Hits:
        """About the best rows, as `clipx.use.search.search_rows` gives the best.

        Raises:
            TooFewError: there are fewer rows than `k`.
            InputError: the index finds fewer.
        """
        count = self._index.ntotal
        if k > count:
            raise TooFewError(k, count)
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        _, proposed_QC = self._index.search(queries_QD, min(_PROPOSED * k, count))
        pairs = zip(queries_QD, proposed_QC, strict=True)
        found = [self._ranked(query_D, row_C[row_C >= 0], k) for query_D, row_C in pairs]
        return Hits(*(np.stack(part) for part in zip(*found, strict=True)))

    def _ranked(self, query_D: np.ndarray, row_C: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if len(row_C) < k:
            raise InputError(
                f"-k {k}: {self.path.name} finds only {len(row_C):,} rows for a query; ask for at most so many, or "
                "search without --index"
            )
        score_C = np.empty(len(row_C))
        first = 0
        for shard in self._shards:
            of_shard_C = (row_C >= first) & (row_C < first + len(shard))
            rows_CD = np.asarray(shard[row_C[of_shard_C] - first], np.float32)
            score_C[of_shard_C] = np.multiply(rows_CD, query_D, dtype=np.float64).sum(axis=1)
            first += len(shard)
        order_K = np.lexsort((row_C, -score_C))[:k]
        return score_C[order_K].astype(np.float32), row_C[order_K].astype(np.int64)

    def _built(self, embeddings: Embeddings, factory: str) -> Any:
        dim = embeddings.manifest.embed_dim
        if re.search(r"[A-Za-z]0+(?!\d)", factory):  # with some of these faiss ends the whole process
            raise InputError(f"--index faiss:{factory}: a number of 0 makes no index; e.g. faiss:IVF256,Flat")
        try:
            inner = self._faiss.index_factory(dim, factory, self._faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise InputError(f"--index faiss:{factory}: faiss knows no such index; e.g. faiss:IVF256,Flat") from error
        index = self._faiss.IndexIDMap2(inner)
        try:
            if not inner.is_trained:
                inner.train(self._sample())
            first = 0
            for shard in self._shards:
                for start in range(0, len(shard), _BLOCK):
                    rows = np.asarray(fresh_rows(shard, start, min(start + _BLOCK, len(shard))), np.float32)
                    present = np.flatnonzero(rows.any(axis=1))
                    index.add_with_ids(rows[present], present + first + start)
                first += len(shard)
        except RuntimeError as error:
            reason = str(error).rpartition(": ")[2].strip() or "it cannot be built"
            raise InputError(f"--index faiss:{factory}: {reason}; choose another, or none") from error
        self._write(index)
        return index

    def _sample(self) -> np.ndarray:
        """Rows spread evenly over all shards."""
        step = max(sum(map(len, self._shards)) // _TRAINING_ROWS, 1)
        taken = [np.asarray(fresh_rows(shard, 0, len(shard))[::step], np.float32) for shard in self._shards]
        rows = np.concatenate(taken)
        return rows[rows.any(axis=1)]

    def _write(self, index: Any) -> None:
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self._faiss.write_index(index, str(draft))
            draft.replace(self.path)
        except (RuntimeError, OSError) as error:
            draft.unlink(missing_ok=True)
            raise InputError(f"{self.path} cannot be written; free some space, or search without --index") from error

    def _read(self) -> Any:
        try:
            return self._faiss.read_index(str(self.path), self._faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise InputError(f"{self.path} is damaged; remove it, and it is built again") from error

    def _probe(self) -> None:
        """Lets an inverted file look at several cells, where the index has one inside."""
        try:
            inverted = self._faiss.extract_index_ivf(self._index.index)
        except (RuntimeError, AttributeError):
            return
        inverted.nprobe = min(_PROBES, inverted.nlist)


def _file_name(embeddings: Embeddings, by: Column, factory: str) -> str:
    """Named after the factory and after the embeddings: those of another model or other inputs have another index."""
    manifest = (embeddings.folder / MANIFEST).read_bytes()
    digest = blake2b(manifest + factory.encode(), digest_size=4).hexdigest()
    return f"faiss-{by}-{re.sub(r'[^A-Za-z0-9,_]+', '-', factory)[:80]}-{digest}.index"


def _faiss() -> Any:
    try:
        return import_module("faiss")
    except ImportError as error:
        raise InputError('--index faiss:... needs faiss: pip install "clipx-train[search]"') from error
