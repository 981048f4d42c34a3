"""Exact duplicates over all shards of an index: the first stays, in the index's order.

Hashes have 64 bits: among a billion different samples one pair is taken for equal with a chance of 3%.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from clipx.data.index.folder import IndexFolder
from clipx.data.index.offsets import ShardOffsets
from clipx.errors import InputError

_AT_ONCE = 1 << 25  # hashes that are compared together, 40 bytes each
_Shard = tuple[IndexFolder, str]


def mark_duplicates(shards: Sequence[_Shard], *, reason: int) -> Iterator[np.ndarray]:
    """Rewrites the offsets whose duplicates are others than they say, and yields the reasons of each shard's samples.

    Reads the offsets as often as there are 33 million samples. The shards are in the index's order, and their samples
    are filtered; `reason` is the number of the reason for which duplicates are left out.

    Raises:
        InputError: offsets are gone, or cannot be written.
    """
    starts = np.cumsum([0, *(len(_open(shard).hashes) for shard in shards)])
    parts = -(-int(starts[-1]) // _AT_ONCE)
    by_part = [_duplicates(shards, starts, reason, np.uint64(part), np.uint64(parts)) for part in range(parts)]
    duplicates = np.sort(np.concatenate([np.zeros(0, np.int64), *by_part]))
    borders = np.searchsorted(duplicates, starts)
    for i, (folder, name) in enumerate(shards):
        offsets = _open((folder, name))
        reasons = np.where(offsets.reasons == reason, 0, offsets.reasons)
        reasons[duplicates[borders[i] : borders[i + 1]] - starts[i]] = reason
        if (reasons != offsets.reasons).any():
            folder.put_offsets(name, offsets.to_bytes(reasons))
        yield reasons


def _duplicates(
    shards: Sequence[_Shard], starts: np.ndarray, reason: int, part: np.uint64, parts: np.uint64
) -> np.ndarray:
    """Positions, over all shards, of the duplicates among the samples whose hashes fall into one part."""
    positions, hashes = [], []
    for shard, start in zip(shards, starts.tolist(), strict=False):
        offsets = _open(shard)
        here = np.flatnonzero(((offsets.reasons == 0) | (offsets.reasons == reason)) & (offsets.hashes % parts == part))
        positions.append(here + start)
        hashes.append(offsets.hashes[here])
    _, first = np.unique(np.concatenate(hashes), return_index=True)
    return np.delete(np.concatenate(positions), first)


def _open(shard: _Shard) -> ShardOffsets:
    folder, name = shard
    offsets = next(folder.open_offsets(name), None)
    if offsets is None:
        raise InputError(f"{folder.offsets_path(name)} is gone or damaged; run `clipx data index` again")
    return offsets
