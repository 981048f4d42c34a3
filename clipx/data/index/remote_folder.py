"""Folders of stores, each listed once with sizes and times: a request for a thousand shards, not one per shard."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from clipx.config.data import RemoteConfig
from clipx.data.index.shard_paths import ShardGroup, decoded, found_rows, packed, packed_bytes
from clipx.storage import remote as remote_files
from clipx.storage.remote import ASK

STATS_SUFFIX = "_stats.json"
_LIST = RemoteConfig(timeout_s=900, retries=1)  # 500,000 names are 500 requests; the store has just answered


class _Listing(NamedTuple):
    """The files of a folder that matter."""

    tars: np.ndarray
    """bytes (N,), in ascending order."""
    states: np.ndarray
    """int64 (2, N), sizes and times of `tars`."""
    others: np.ndarray
    """bytes (M,), the JSON files that hold counts, in ascending order."""


class RemoteFolders:
    """What lies in folders of stores and web servers; safe to use from several threads."""

    def __init__(self) -> None:
        self._listings: dict[str, _Listing] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def tars(self, url: str) -> Iterator[ShardGroup]:
        """The tar files of the folder `url` without hidden ones; or `url` itself if it is a file; or nothing.

        Raises:
            OSError: the store does not answer, or says no.
        """
        folder = url.rstrip("/") + "/"
        kind = _kind(url)
        if kind == "folder":
            tars = self._listing(folder).tars
            yield ShardGroup(folder, tars[tars.astype("S1") != b"."])
        elif kind == "file":
            yield ShardGroup(url[: url.rfind("/") + 1], packed([url[url.rfind("/") + 1 :]]))

    def matches(self, pattern: str) -> Iterator[ShardGroup]:
        """The tar files that a glob matches.

        Raises:
            OSError: see `tars`.
        """
        hidden = any(part.startswith(".") for part in pattern.split("/"))
        root = pattern[: min(pattern.find(letter) % (len(pattern) + 1) for letter in "*?[")].rpartition("/")[0]
        if _kind(root) == "absent":
            return
        for path in remote_files.ask(pattern, "glob", remote=_LIST):
            if path.endswith(".tar") and (hidden or not any(part.startswith(".") for part in path.split("/"))):
                folder, slash, name = path.rpartition("/")
                yield ShardGroup(_with_protocol(pattern, folder + slash), packed([name]))

    def exists(self, url: str) -> bool:
        """Whether something is there; a web server is not asked.

        Raises:
            OSError: see `tars`.
        """
        return _kind(url) != "absent"

    def states(self, prefix: str, names: np.ndarray, *, may_list: bool) -> np.ndarray:
        """int64 (2, N): sizes (0 if not known, -1 if absent) and times of files of a folder, `names` being bytes (N,).

        With `may_list` the folder is listed rather than each file asked for. A web server's list tells no sizes, so
        many of its files are not asked for at all.

        Raises:
            OSError: see `tars`.
        """
        if prefix not in self._listings and not may_list:
            return np.array([_ask(prefix + decoded(name)) for name in names.tolist()], np.int64).T
        states = np.zeros((2, len(names)), np.int64)
        if remote_files.is_http(prefix):
            return states
        listing = self._listing(prefix)
        rows = found_rows(listing.tars, names)
        states[0] = -1
        states[:, rows >= 0] = listing.states[:, rows[rows >= 0]]
        return states

    def has(self, prefix: str, name: str) -> bool | None:
        """Whether a JSON file with counts lies in a folder; None if the folder was not listed."""
        listing = self._listings.get(prefix)
        return None if listing is None else bool(found_rows(listing.others, packed([name]))[0] >= 0)

    def _listing(self, prefix: str) -> _Listing:
        with self._locks[prefix]:
            if prefix not in self._listings:
                self._listings[prefix] = _select(_list(prefix))
            return self._listings[prefix]


def _kind(url: str) -> Literal["file", "folder", "absent"]:
    """What lies at an address; a web server is not asked. Ends soon if a store is silent, unlike the wait for a list.

    Raises:
        OSError: the store does not answer, or says no.
    """
    if remote_files.is_http(url):
        return "folder" if url.endswith("/") else "file"
    try:
        remote_files.state(url, ASK)
    except IsADirectoryError:
        return "folder"
    except FileNotFoundError:
        return "absent"
    return "file"


def _list(prefix: str) -> list[Mapping[str, Any]]:
    """What a store or web server says of each file of a folder."""
    if remote_files.is_http(prefix):
        return [{"name": name} for name in remote_files.list_names(prefix, ASK)]
    if _kind(prefix.rstrip("/")) == "absent":
        return []
    listed: list[Mapping[str, Any]] = remote_files.ask(prefix.rstrip("/"), "ls", remote=_LIST, detail=True)
    return listed


def _select(entries: Iterable[Mapping[str, Any]]) -> _Listing:
    tars: dict[bytes, tuple[int, int]] = {}
    others = []
    for info in entries:
        name = info["name"].rstrip("/").rpartition("/")[2]
        if info.get("type") == "directory":
            continue
        if name.endswith(".tar"):
            tars[name.encode()] = info.get("size") or 0, remote_files.modified_ns(info)
        elif name.endswith(STATS_SUFFIX) or name == "sizes.json":
            others.append(name.encode())
    names = sorted(tars)
    states = np.array([tars[name] for name in names], np.int64).reshape(-1, 2).T
    return _Listing(packed_bytes(names), states, packed_bytes(sorted(others)))


def _ask(url: str) -> tuple[int, int]:
    try:
        size, mtime_ns, _ = remote_files.state(url, ASK)
    except (FileNotFoundError, IsADirectoryError):
        return -1, 0
    return size or 0, mtime_ns


def _with_protocol(url: str, path: str) -> str:
    return path if "://" in path else f"{url.partition('://')[0]}://{path.removeprefix('/')}"
