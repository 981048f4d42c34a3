"""Counts of shards that need no scan: img2dataset's NNNNN_stats.json beside each shard, or sizes.json in the folder."""

import json
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from clipx.data.index.remote_folder import ASK, STATS_SUFFIX, RemoteFolders
from clipx.data.index.shard_counts import Origin
from clipx.data.index.shard_paths import Run, decoded
from clipx.errors import InputError
from clipx.storage.failures import mend
from clipx.storage.files import is_local, read_file

_SIZES = "sizes.json"
_THREADS = 16


class StatedCounts(NamedTuple):
    """What is said of M shards."""

    counts: np.ndarray
    """int64 (M,), -1 where nothing is said."""
    origin: Origin


def stated_counts(run: Run, folders: RemoteFolders) -> StatedCounts:
    """The counts that files beside the shards of one folder state.

    A web server that was not listed is asked for the first shard's file; where that is absent, so are the others.

    Raises:
        InputError: a store does not answer.
    """
    names = [decoded(name) for name in run.names.tolist()]
    sizes = _read(run.prefix, _SIZES, folders)
    if isinstance(sizes, dict) and (found := np.array([_count(sizes.get(name)) for name in names])).max() >= 0:
        return StatedCounts(found, Origin.SIZES)
    files = [name.removesuffix(".tar") + STATS_SUFFIX for name in names]
    counts = np.full(len(names), -1)
    if (
        not is_local(run.prefix)
        and folders.has(run.prefix, files[0]) is None
        and _read(run.prefix, files[0], folders) is None
    ):
        return StatedCounts(counts, Origin.STATS)
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(files), 4096):  # `map` submits all that it is given at once
            block: Sequence[str] = files[start : start + 4096]
            found_there = threads.map(lambda file: _read(run.prefix, file, folders), block)
            counts[start : start + len(block)] = [
                _count(stats.get("successes")) if isinstance(stats, dict) else -1 for stats in found_there
            ]
    return StatedCounts(counts, Origin.STATS)


def _read(prefix: str, name: str, folders: RemoteFolders) -> object:
    """The content of a JSON file, None where it is absent or no JSON."""
    if not is_local(prefix) and folders.has(prefix, name) is False:
        return None
    path = posixpath.join(prefix, name)
    try:
        return json.loads(read_file(path, remote=ASK))
    except (FileNotFoundError, PermissionError, ValueError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; {mend(error)}") from error


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else -1
