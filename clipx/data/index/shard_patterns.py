"""One pattern of shards: a file, a folder, a glob, braces, a command; on disks and in stores.

What exists literally is meant literally: `d[12]` is the folder of that name if there is one. A path is looked at part
by part, from the left: `my data [v1]/{0..3}.tar` names four shards in that folder, and a glob's `*/x[1].tar` the files
`x[1].tar` where they exist. Hidden names, which copies from macOS are full of (`._00000.tar`), are shards only if a
person writes them, and a folder that links lead to twice is visited once.
"""

import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Iterable, Iterator

from braceexpand import braceexpand

from clipx.config.paths import expand_home
from clipx.data.index.remote_folder import RemoteFolders
from clipx.data.index.shard_paths import ShardGroup, decoded, packed, packed_bytes, split_query
from clipx.errors import InputError
from clipx.storage.files import is_local, kind_of_file
from clipx.storage.remote import PIPE, is_http

_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
_SIGNS = frozenset("*?[{\\")


def expand_pattern(pattern: str, folders: RemoteFolders) -> Iterator[ShardGroup]:
    """The shards of one pattern in any order.

    Raises:
        InputError: there is none, or the pattern is malformed.
        OSError: a folder cannot be listed.
    """
    if pattern.startswith(PIPE):
        yield ShardGroup(PIPE, packed(_braces(pattern.removeprefix(PIPE), escape=False)))
        return
    if is_http(pattern) and "?" in pattern:
        with_query = [split_query(address) for address in _braces(pattern, escape=False)]
        if all(name for _, name in with_query):
            yield from (ShardGroup(prefix, packed([name])) for prefix, name in with_query)
            return
    path = expand_home(pattern.removeprefix("file://"))
    literal, rest = _literal_part(path, folders)
    folder, slash, name = rest.rpartition("/")
    if not rest:
        yield from _required(_found([literal], named=True), literal, pattern)
        return
    plain = name.endswith(".tar") and not glob.has_magic(rest) and "\\" not in rest
    if plain and folder.count("{") == folder.count("}"):
        names = packed(_braces(name, escape=False))
        yield from (ShardGroup(literal + prefix, names) for prefix in _braces(folder + slash, escape=False))
        return
    for alternative in _braces(rest, escape=True):
        yield from _required(_alternative(literal, alternative, folders), literal + alternative, pattern)


def no_shard(path: str, pattern: str) -> InputError:
    """What to say of a path without shards that `pattern` names."""
    origin = "" if path == pattern else f" (from {pattern!r})"
    return InputError(f"shards {path!r}{origin} match no tar file; {_hint(path)}")


def _required(groups: Iterable[ShardGroup], path: str, pattern: str) -> list[ShardGroup]:
    found = list(groups)
    if not any(len(group.names) for group in found):
        raise no_shard(path, pattern)
    return found


def _literal_part(path: str, folders: RemoteFolders) -> tuple[str, str]:
    """What of a path exists as it is written, with the slash at its end, and the rest, which is a pattern.

    Of a path without signs of patterns, nothing is looked for; of one in a store its folder, if that has brackets.
    """
    if not _SIGNS.intersection(path):
        return "", path
    if not is_local(path):
        folder, slash, name = path.rpartition("/")
        brackets = "[" in folder and not _SIGNS.intersection(folder.replace("[", ""))
        return (folder + slash, name) if brackets and folders.exists(folder) else ("", path)
    parts = path.split("/")
    for i in range(len(parts)):
        start = "/".join(parts[: i + 1])
        if start and not os.path.lexists(start):
            return "/".join(parts[:i]) + ("/" if i else ""), "/".join(parts[i:])
    return path, ""


def _braces(pattern: str, *, escape: bool) -> Iterator[str]:
    try:
        return iter(braceexpand(pattern, escape))
    except ValueError as error:
        raise InputError(f"shards {pattern!r} cannot be listed: a brace is not closed; close it") from error


def _alternative(literal: str, rest: str, folders: RemoteFolders) -> Iterator[ShardGroup]:
    """The shards of a path whose rest has no braces."""
    path = literal + rest
    folder, name = rest[: rest.rfind("/") + 1], rest[rest.rfind("/") + 1 :]
    if not is_local(path):
        groups = folders.tars(path) if "[" in rest or not name.endswith(".tar") else ()
        if glob.has_magic(rest):
            here = list(groups)
            yield from here or folders.matches(path)
        elif name.endswith(".tar"):
            yield ShardGroup(path[: path.rfind("/") + 1], packed([name]))
        else:
            yield from groups
    elif not glob.has_magic(folder) and glob.has_magic(name) and not os.path.lexists(path):
        yield from _local_tars(literal + folder, name)
    else:
        yield from _found(_matches(literal, rest), named=not glob.has_magic(rest))


def _matches(literal: str, rest: str) -> list[str]:
    """The local paths that a glob behind `literal` matches; without a glob, itself."""
    if not glob.has_magic(rest):
        return [literal + rest]
    found = [literal]
    *parts, last = rest.split("/")
    for part in parts:
        found = [path + "/" for base in found for path in _children(base, part) if os.path.isdir(path + "/")]
    return [path for base in found for path in _children(base, last)]


def _children(base: str, part: str) -> list[str]:
    if not glob.has_magic(part) or os.path.lexists(base + part):
        return [base + part]
    return [base + name for name in sorted(glob.glob(part, root_dir=base or "."))]


def _found(paths: Iterable[str], *, named: bool) -> Iterator[ShardGroup]:
    """The shards that paths are or hold.

    Args:
        named: a person wrote them as they are: a file is a shard whatever its name.
    """
    seen: set[str] = set()
    for path in paths:
        if os.path.isdir(path):
            if _first_visit(path, seen):
                yield from _local_tars(posixpath.join(path, ""), None)
        elif path.endswith(".tar") or (named and os.path.lexists(path)):
            yield ShardGroup(path[: path.rfind("/") + 1], packed([posixpath.basename(path)]))


def _local_tars(prefix: str, pattern: str | None) -> Iterator[ShardGroup]:
    """The tar files of a folder, and of its folders, whose names match; None means all of the folder's own."""
    matches = re.compile(fnmatch.translate(pattern or "*").encode("utf-8", "surrogateescape")).match
    hidden = pattern is not None and pattern.startswith(".")
    deeper: list[bytes] = []

    def files() -> Iterator[bytes]:
        with os.scandir(os.fsencode(prefix or ".")) as entries:
            for entry in entries:
                if (entry.name.startswith(b".") and not hidden) or not matches(entry.name):
                    continue
                folder = _is_folder(entry)
                if entry.name.endswith(b".tar") and not folder:
                    yield entry.name
                elif pattern is not None and folder:
                    deeper.append(entry.name)

    try:
        yield ShardGroup(prefix, packed_bytes(files()))
    except (FileNotFoundError, NotADirectoryError):
        return
    seen: set[str] = set()
    if deeper:
        _first_visit(prefix, seen)
    for folder in (f"{prefix}{decoded(name)}/" for name in sorted(deeper)):
        if _first_visit(folder, seen):
            yield from _local_tars(folder, None)


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle; `shard_states` names it
        return False


def _first_visit(folder: str, seen: set[str]) -> bool:
    """Whether a folder is not yet among those seen, of which it is one now; links do not make others of it."""
    real = os.path.realpath(folder or ".")
    first = real not in seen
    seen.add(real)
    return first


def _hint(path: str) -> str:
    """What to do about a pattern without shards, from what lies there."""
    if not is_local(path):
        return "nothing is there: check the bucket or host, and the path"
    if os.path.isdir(path):
        return _hint_of_folder(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        if os.path.islink(path):
            return "it is a link that leads nowhere: mend or remove it"
        return "give a tar file, a folder of *.tar, or a glob"
    return f"it is {kind_of_file(mode)}, not a file: leave it out, or move it elsewhere"


def _hint_of_folder(path: str) -> str:
    if path.endswith(".tar"):
        return f"it is a folder: write {path}/"
    if packed_files := sorted(name for name in os.listdir(path) if name.endswith(_COMPRESSED)):
        found = f"{len(packed_files)} compressed files are there, {packed_files[0]} first"
        return f"{found}: unpack them to plain *.tar"
    if deeper := sorted(glob.glob(f"{glob.escape(path)}/*/*.tar")):
        return f"subfolders are not searched: name {os.path.dirname(deeper[0])}"
    return "give a tar file, a folder of *.tar, or a glob"
