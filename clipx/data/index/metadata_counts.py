"""Counts of shards that need no scan: img2dataset's NNNNN_stats.json beside each shard, or sizes.json in the folder."""

import json
import posixpath

import numpy as np

from clipx.data.index.remote_folder import STATS_SUFFIX, RemoteFolders
from clipx.data.index.shard_counts import MAX_COUNT, CountSource
from clipx.data.index.shard_paths import ShardGroup, decoded, has_query
from clipx.data.parallel import in_threads
from clipx.errors import InputError
from clipx.storage.failures import hint
from clipx.storage.files import is_local, read_file
from clipx.storage.remote import ASK

_SIZES = "sizes.json"


def counts_from_metadata(run: ShardGroup, folders: RemoteFolders) -> tuple[np.ndarray, CountSource]:
    """The counts that files beside the M shards of one folder state: int64 (M,), -1 if none does; and which files.

    A web server that was not listed is asked for the first shard's file; if that is absent, so are the others.

    Raises:
        InputError: a store does not answer.
    """
    names = [decoded(name) for name in run.names.tolist()]
    if has_query(run):
        return np.full(len(names), -1), CountSource.STATS
    sizes = _read(run.prefix, _SIZES, folders)
    if isinstance(sizes, dict) and (counts := np.array([_count(sizes.get(name)) for name in names])).max() >= 0:
        return counts, CountSource.SIZES
    files = [name.removesuffix(".tar") + STATS_SUFFIX for name in names]
    unlisted = not is_local(run.prefix) and folders.has(run.prefix, files[0]) is None
    if unlisted and _read(run.prefix, files[0], folders) is None:
        return np.full(len(names), -1), CountSource.STATS
    contents = in_threads(lambda file: _read(run.prefix, file, folders), files)
    stated = (_count(stats.get("successes")) if isinstance(stats, dict) else -1 for stats in contents)
    return np.fromiter(stated, np.int64, len(files)), CountSource.STATS


def _read(prefix: str, name: str, folders: RemoteFolders) -> object:
    """The content of a JSON file, None if it is absent or no JSON."""
    if not is_local(prefix) and folders.has(prefix, name) is False:
        return None
    path = posixpath.join(prefix, name)
    try:
        return json.loads(read_file(path, remote=ASK))
    except (FileNotFoundError, PermissionError, ValueError, RecursionError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; {hint(error)}") from error


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT else -1
