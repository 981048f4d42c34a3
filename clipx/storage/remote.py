"""Requests to other machines through fsspec: every one ends in time, is tried again, and fails with one line.

`files.py` and `shard_cache.py` build on it; nobody else knows how a store is asked. Async file systems (http, s3, gs)
run on fsspec's own loop with a timeout; the others (hf, memory) in a thread that is left behind when it hangs. fsspec
makes new connections in a forked process; those of the parent must never be closed there (`_inherited`).
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.asyn import sync

from clipx.config.data import RemoteConfig
from clipx.printable import REDACTED, redact, resolve
from clipx.storage.failures import ChangedError, UnusableAddressError, explain, is_final

DEFAULTS = RemoteConfig()
ASK = RemoteConfig(timeout_s=20, retries=1)
"""For a question before a run starts: a store that does not answer is given up within a minute."""
PIPE = "pipe:"
"""What a command's address begins with."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # before a further try
_CHUNK = 1 << 20
_PIECE = 16 << 20  # of a download: ends within the timeout also at 0.3 MB/s
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")  # as the file systems name it
_OK, _PARTIAL, _NOT_SATISFIABLE = 200, 206, 416
_LINE_EVERY_S = 5.0  # of failures that will be tried again

# Every file system asked so far. A forked process keeps its parent's for ever: what it let go of would be closed, and
# closing a connection takes it out of the epoll set, which parent and child share; the parent would wait in vain.
_inherited: dict[int, Any] = {}

T = TypeVar("T")

log = logging.getLogger(__name__)


class RemoteState(NamedTuple):
    """What a store says of a file."""

    size: int | None
    """Bytes; None if the server does not say."""
    mtime_ns: int
    """Time of the last change in nanoseconds; 0 if the store knows none."""
    ranges: bool
    """Whether a part can be asked for."""


class _StatusError(OSError):
    """A web server said no."""

    def __init__(self, status: int, reason: str | None) -> None:
        super().__init__(f"the server answers {status} {reason or ''}".rstrip())
        self.status = status


class _Part(NamedTuple):
    """An answer to a request for a byte range."""

    state: RemoteState
    data: bytes


def state(url: str, remote: RemoteConfig = DEFAULTS) -> RemoteState:
    """Size, time and abilities of `url`, in one request.

    Raises:
        OSError: it is not there or does not answer.
    """
    return with_retries(url, lambda: _state(url, remote), remote)


def read_range(url: str, start: int, stop: int, *, size: int, remote: RemoteConfig = DEFAULTS) -> bytes:
    """The bytes from `start` to `stop` of a file of `size` bytes, in one request; fewer only at its end.

    Raises:
        OSError: the last retry failed, or the file has another size by now.
    """
    stop = min(stop, size)
    if start >= stop:
        return b""
    return with_retries(url, lambda: _read_range(url, start, stop, size, remote), remote)


def read_whole(url: str, remote: RemoteConfig = DEFAULTS) -> bytes:
    """The content of a small file.

    Raises:
        OSError: see `read_range`.
    """
    if is_http(url):
        return with_retries(url, lambda: b"".join(_http_stream(url, remote)), remote)
    return ask(url, "cat_file", remote=remote)


def write_whole(url: str, content: bytes, remote: RemoteConfig = DEFAULTS) -> None:
    """Puts a small file.

    Raises:
        OSError: see `read_range`; also if the store cannot be written, as over http.
    """
    if is_http(url):
        raise PermissionError("http servers are only read")
    ask(url, "pipe_file", content, remote=remote)


def list_names(url: str, remote: RemoteConfig = DEFAULTS) -> list[str]:
    """The names in the folder `url`, those of folders without their slash.

    Raises:
        OSError: FileNotFoundError when nothing is there, else see `read_range`.
    """
    paths = ask(url, "ls", remote=remote, detail=False)
    folder = resolved(url).rstrip("/")
    names = {path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != folder}
    return sorted(names)


def ask(url: str, method: str, *arguments: Any, remote: RemoteConfig = DEFAULTS, **options: Any) -> Any:
    """What a method of fsspec's file system for `url` (ls, glob, info) returns for its path.

    Raises:
        OSError: see `read_range`.
    """
    return with_retries(url, lambda: _call(url, method, *arguments, remote=remote, **options), remote)


def modified_ns(info: Mapping[str, Any]) -> int:
    """Time of the last change in nanoseconds by an entry that fsspec lists, 0 if the store knows none."""
    changed = next((info[key] for key in _TIMES if info.get(key)), 0)
    if isinstance(changed, str):
        changed = datetime.fromisoformat(changed)
    return int((changed.timestamp() if isinstance(changed, datetime) else changed) * 1e9)


def download(url: str, write: Callable[[bytes, int], None], remote: RemoteConfig = DEFAULTS) -> None:
    """Hands the whole of a file to `write` as (bytes, offset): in pieces if the store gives parts, else as a stream.

    Raises:
        OSError: see `read_range`, or from `write`.
    """
    now = None if url.startswith(PIPE) else state(url, remote)
    if now is None or now.size is None or not now.ranges:
        with_retries(url, lambda: _write_stream(url, write, remote), remote)
        return
    for start in range(0, now.size, _PIECE):
        write(read_range(url, start, start + _PIECE, size=now.size, remote=remote), start)


def _write_stream(url: str, write: Callable[[bytes, int], None], remote: RemoteConfig) -> None:
    if url.startswith(PIPE):
        from clipx.storage import pipe

        if REDACTED in url:
            resolved(url)  # says what to do; what else a command refers to is its shell's
        chunks = pipe.stream(url.removeprefix(PIPE), remote.timeout_s)
    else:
        chunks = _http_stream(url, remote)
    position = 0
    for chunk in chunks:
        write(chunk, position)
        position += len(chunk)


def _http_stream(url: str, remote: RemoteConfig) -> Iterator[bytes]:
    """The content of a web address from its start on, in one request; each chunk must come within the timeout."""
    filesystem, path = _filesystem(url, remote)
    response = sync(filesystem.loop, _http_get, filesystem, path, {}, timeout=remote.timeout_s)
    try:
        while chunk := sync(filesystem.loop, response.content.read, _CHUNK, timeout=remote.timeout_s):
            yield chunk
    finally:
        filesystem.loop.call_soon_threadsafe(response.close)


def is_http(url: str) -> bool:
    """Whether a plain web server is asked: it may lack ranges, and says so only in its answers."""
    return url.startswith(("http://", "https://"))


def with_retries(url: str, action: Callable[[], T], remote: RemoteConfig) -> T:
    """The result of `action`, tried again after 0.5, 1, 2, ... (at most 30) seconds.

    Raises:
        OSError: one line; at once if no retry helps (`is_final`), else what the last try met.
    """
    for attempt in itertools.count():
        try:
            return action()
        except Exception as error:  # every storage library has its own families of errors
            reason = explain(error, remote.timeout_s)
            if is_final(reason):
                raise reason from error
            if attempt == remote.retries:
                raise type(reason)(f"{reason} (the last of {attempt + 1} tries)") from error
        wait_s = min(FIRST_WAIT_S * 2.0**attempt, LONGEST_WAIT_S)
        _failures.log(url, f"{reason}; trying again in {wait_s:g} s")
        time.sleep(wait_s)
    raise AssertionError("unreachable")


class _FailureLog:
    """One line for the first failure of an address, and not more than one every few seconds."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._not_logged = 0
        self._next_line = 0.0

    def log(self, url: str, text: str) -> None:
        if url in self._known:
            return
        if time.monotonic() < self._next_line:
            self._not_logged += 1
            return
        self._known.add(url)
        more = f" ({self._not_logged} failures of other addresses were not logged)" if self._not_logged else ""
        log.warning("%s: %s%s", redact(url), redact(text), more)
        self._not_logged, self._next_line = 0, time.monotonic() + _LINE_EVERY_S


_failures = _FailureLog()


def resolved(address: str) -> str:
    """The address as it is asked for, with the values of `${NAME}`; all that is logged and stored has the reference.

    Raises:
        UnusableAddressError: a value is missing, or a secret was left out where the address was stored.
    """
    try:
        return resolve(address, os.environ)
    except LookupError as error:
        raise UnusableAddressError(error.args[0]) from None


def _filesystem(url: str, remote: RemoteConfig) -> tuple[Any, str]:
    url = resolved(url)
    if "::" in url or url.startswith("reference:"):  # fsspec would run the templates of a stranger's list of references
        raise UnusableAddressError("a chain of file systems (::) is not read; give one address")
    options: dict[str, Any] = {}
    if url.startswith(("s3://", "s3a://")):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        bounds = {"retries": {"total_max_attempts": 1}, "connect_timeout": remote.timeout_s}
        bounds |= {"read_timeout": remote.timeout_s, "max_pool_connections": max(10, remote.connections)}
        options = {"config_kwargs": bounds | configured, "use_listings_cache": False}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if options:
        filesystem.retries = 1  # s3fs tries five times by itself, which would use up the timeout of one try
    _inherited[id(filesystem)] = filesystem
    return filesystem, path


def _call(url: str, method: str, *arguments: Any, remote: RemoteConfig, **options: Any) -> Any:
    """Calls a method of the file system of `url` with its path, for at most the timeout."""
    filesystem, path = _filesystem(url, remote)
    if filesystem.async_impl:
        action = getattr(filesystem, f"_{method}")
        return sync(filesystem.loop, action, path, *arguments, timeout=remote.timeout_s, **options)
    return _in_thread(lambda: getattr(filesystem, method)(path, *arguments, **options), remote.timeout_s)


def _in_thread(action: Callable[[], T], timeout_s: float) -> T:
    """The result of `action`; a thread that does not end in time is left behind."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout_s)


def _state(url: str, remote: RemoteConfig) -> RemoteState:
    if is_http(url):
        return _http_part(url, 0, 1, remote).state
    info = _call(url, "info", remote=remote)
    if info["type"] == "directory":
        raise IsADirectoryError("it is a folder")
    return RemoteState(info["size"], modified_ns(info), ranges=True)


def _read_range(url: str, start: int, stop: int, size: int, remote: RemoteConfig) -> bytes:
    if is_http(url):
        now, data = _http_part(url, start, stop, remote)
        if not now.ranges:
            raise OSError("the server answered a request for a part with the whole file")
        if now.size != size:
            raise ChangedError(f"the file has {now.size} bytes now, not {size}")
    else:
        # huggingface_hub would ask for the size each time, and read 5 MB ahead
        unbuffered = {"size": size, "cache_type": "none"} if url.startswith("hf://") else {}
        data = _call(url, "cat_file", remote=remote, start=start, end=stop, **unbuffered)
    if len(data) != stop - start:
        raise OSError(f"{len(data)} instead of {stop - start} bytes came")
    return data


async def _http_get(filesystem: Any, url: str, headers: dict[str, str]) -> Any:
    """The answer of an http server, its body still to be read; the caller closes it."""
    import aiohttp

    session = await filesystem.set_session()
    # a compressed answer has other offsets; the timeout is the caller's, aiohttp's own of 5 minutes is not wanted
    options = filesystem.kwargs | {"timeout": aiohttp.ClientTimeout(total=None)}
    options["headers"] = filesystem.kwargs.get("headers", {}) | {"Accept-Encoding": "identity"} | headers
    response = await session.get(filesystem.encode_url(url), **options)
    if response.status not in (_OK, _PARTIAL, _NOT_SATISFIABLE):
        response.close()
        raise _StatusError(response.status, response.reason)
    return response


def _http_part(url: str, start: int, stop: int, remote: RemoteConfig) -> _Part:
    filesystem, path = _filesystem(url, remote)
    return sync(filesystem.loop, _http_range, filesystem, path, start, stop, timeout=remote.timeout_s)


async def _http_range(filesystem: Any, url: str, start: int, stop: int) -> _Part:
    """Bytes `start` to `stop`, or none if the server ignores the range: the whole file is not read then."""
    response = await _http_get(filesystem, url, {"Range": f"bytes={start}-{stop - 1}"})
    try:
        mtime_ns = 0
        if changed := response.headers.get("Last-Modified"):
            mtime_ns = int(parsedate_to_datetime(changed).timestamp() * 1e9)
        if response.status == _OK:
            return _Part(RemoteState(response.content_length, mtime_ns, ranges=False), b"")
        span, _, size = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        now = RemoteState(int(size) if size.isdigit() else None, mtime_ns, ranges=True)
        if response.status == _NOT_SATISFIABLE:
            return _Part(now, b"")
        if span.partition("-")[0] != str(start):
            raise OSError(f"the server answered a request for bytes from {start} with {span or 'no'} bytes")
        return _Part(now, await response.read())
    finally:
        response.close()
