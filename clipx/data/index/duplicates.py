"""Exact duplicates over all shards of an index: the first stays, in the index's order.

Hashes have 64 bits: among a billion different samples one pair is taken for equal with a chance of 3%.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from clipx.data.index.folder import IndexFolder
from clipx.data.index.offsets import Sidecar
from clipx.data.index.scan import kept_sidecar
from clipx.errors import InputError

_AT_ONCE = 1 << 25  # hashes that are compared together, 40 bytes each


class Kept(NamedTuple):
    """A shard whose samples were judged."""

    folder: IndexFolder
    name: str


def mark_duplicates(shards: Sequence[Kept], *, reason: int) -> Iterator[np.ndarray]:
    """Rewrites the sidecars whose duplicates are others than they say, and yields the reasons of each shard's samples.

    Reads the sidecars as often as there are 33 million samples.

    Args:
        shards: in the index's order.
        reason: the number of the reason for which duplicates are left out.

    Raises:
        InputError: a sidecar is gone, or cannot be written.
    """
    starts = np.cumsum([0, *(len(_open(shard).hashes) for shard in shards)])
    parts = -(-int(starts[-1]) // _AT_ONCE)
    found = [_duplicates(shards, starts, reason, np.uint64(part), np.uint64(parts)) for part in range(parts)]
    duplicates = np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
    borders = np.searchsorted(duplicates, starts)
    for number, shard in enumerate(shards):
        sidecar = _open(shard)
        reasons = np.where(sidecar.reasons == reason, 0, sidecar.reasons)
        reasons[duplicates[borders[number] : borders[number + 1]] - starts[number]] = reason
        if (reasons != sidecar.reasons).any():
            shard.folder.put_sidecar(shard.name, sidecar.with_reasons(reasons))
        yield reasons


def _duplicates(
    shards: Sequence[Kept], starts: np.ndarray, reason: int, part: np.uint64, parts: np.uint64
) -> np.ndarray:
    """Places, over all shards, of the duplicates among the samples whose hashes fall into one part."""
    places, hashes = [], []
    for shard, start in zip(shards, starts.tolist(), strict=False):
        sidecar = _open(shard)
        here = np.flatnonzero(((sidecar.reasons == 0) | (sidecar.reasons == reason)) & (sidecar.hashes % parts == part))
        places.append(here + start)
        hashes.append(sidecar.hashes[here])
    place = np.concatenate(places)
    _, first = np.unique(np.concatenate(hashes), return_index=True)
    return np.delete(place, first)


def _open(shard: Kept) -> Sidecar:
    sidecar = kept_sidecar(shard.folder, shard.name)
    if sidecar is None:
        raise InputError(f"{shard.folder.sidecar(shard.name)} is gone or damaged; run `clipx data index` again")
    return sidecar
