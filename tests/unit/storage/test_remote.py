import gc
import os
import sys
import threading
import time
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem, hf_file_system
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath
from servers import WebServer, object_store

from clipx.config.data import RemoteConfig
from clipx.printable import redact
from clipx.storage import remote
from clipx.storage.failures import ChangedError, UnusableAddressError, explain, hint, is_final

QUICK = RemoteConfig(timeout_s=0.4, retries=2, connections=2)
CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds waited between tries, without waiting."""
    slept = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    monkeypatch.setattr(remote, "_failures", remote._FailureLog())
    return slept


@pytest.fixture
def web():
    with WebServer({"x.tar": CONTENT, "empty": b""}) as server:
        yield server


def read(url, start, stop, size=None):
    return remote.read_range(url, start, stop, size=size or len(CONTENT), remote=QUICK)


def test_a_web_server_is_asked_for_exactly_the_range(web):
    url = f"{web.url}/x.tar"
    assert remote.state(url, QUICK) == (len(CONTENT), 0, True)
    assert remote.state(f"{web.url}/empty", QUICK).size == 0
    sent = web.bytes_sent
    assert read(url, 10, 20) == CONTENT[10:20]
    assert read(url, len(CONTENT) - 5, len(CONTENT) + 5) == CONTENT[-5:]
    assert read(url, len(CONTENT), len(CONTENT) + 5) == b""
    assert web.bytes_sent - sent == 15
    assert remote.read_whole(url, QUICK) == CONTENT


def test_what_is_tried_again_is_named_without_its_secret(web, caplog):
    web.failures = 1  # in a worker process nobody else cleans the log
    url = f"{web.url}/x.tar?token=s3cr3t-s3cr3t-s3cr3t"
    with pytest.raises(FileNotFoundError):
        remote.state(url, QUICK)
    assert "trying again" in caplog.text
    assert "token=REDACTED" in caplog.text
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    "form", ["reference::{0}/x.json", "simplecache::{0}/x.json", "zip://x.tar::{0}/x.zip", "reference://x"]
)
def test_chains_of_file_systems_are_not_followed(web, form):
    # a list of references may hold templates, which are programs; a stranger's checkpoint may name it in its config
    with pytest.raises(UnusableAddressError, match=r"a chain of file systems \(::\) is not read; give one address"):
        remote.ask(form.format(web.url), "ls", remote=QUICK)
    assert web.requests == []


def test_references_to_the_environment_are_known_to_requests_alone(web, monkeypatch, caplog):
    monkeypatch.setenv("FOLDER_OF_TODAY", "s3cr3t-folder")
    web.files["s3cr3t-folder/x.tar"] = CONTENT
    address = f"{web.url}/${{FOLDER_OF_TODAY}}/x.tar"
    assert read(address, 3, 9) == CONTENT[3:9]
    web.failures, web.failure_status = 1, 503
    assert read(address, 3, 9) == CONTENT[3:9]
    assert caplog.messages[0].startswith(f"{address}: the server answers 503")
    with pytest.raises(FileNotFoundError) as raised:
        remote.read_whole(f"{web.url}/${{FOLDER_OF_TODAY}}/absent", QUICK)
    assert redact(f"{web.url}/s3cr3t-folder/x.tar") == address
    assert "s3cr3t" not in str(raised.value)
    monkeypatch.delenv("FOLDER_OF_TODAY")
    with pytest.raises(UnusableAddressError, match="the environment has no FOLDER_OF_TODAY; set it"):
        read(address, 3, 9)


@pytest.mark.parametrize("address", ["https://u:REDACTED@h/x.tar", "pipe:curl -u a:REDACTED https://h/x.tar"])
def test_an_address_without_its_secret_says_so(address):
    with pytest.raises(UnusableAddressError, match=r"a secret was left out of it when it was stored; give it with \$"):
        remote.download(address, lambda *_: None, QUICK)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(web, status, waits, caplog):
    web.failures, web.failure_status = 2, status
    assert read(f"{web.url}/x.tar", 0, 4) == CONTENT[:4]
    assert waits == [0.5, 1.0]
    assert len(caplog.messages) == 1
    assert f"{web.url}/x.tar: the server answers {status}" in caplog.messages[0]
    web.failures = 3
    with pytest.raises(OSError, match=rf"the server answers {status} .*\(the last of 3 tries\)$"):
        read(f"{web.url}/x.tar", 0, 4)


def test_waits_grow_to_half_a_minute(waits):
    failing = RemoteConfig(timeout_s=1, retries=8)
    with pytest.raises(OSError, match="last of 9 tries"):
        remote.with_retries("x", lambda: (_ for _ in ()).throw(OSError("no")), failing)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_failures_do_not_flood_the_log(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=lambda _: None, monotonic=lambda: now[0]))

    def fail(url):
        with pytest.raises(OSError, match="no"):
            remote.with_retries(url, lambda: (_ for _ in ()).throw(OSError("no")), RemoteConfig(timeout_s=1, retries=1))

    now[0] = 100.0
    for number in range(100):
        fail(f"x{number}")
    now[0] = 200.0
    fail("x0")
    assert caplog.messages == ["x0: no; trying again in 0.5 s"]
    fail("y")
    assert caplog.messages[1:] == ["y: no; trying again in 0.5 s (99 failures of other addresses were not logged)"]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, FileNotFoundError, r"not there \(the server answers 404\)"),
        (403, PermissionError, "no permission: the server answers 403"),
        (400, UnusableAddressError, "the server answers 400"),
    ],
)
def test_what_no_retry_mends_ends_at_once(web, waits, status, kind, message):
    web.failures, web.failure_status = 1, status
    with pytest.raises(kind, match=message):
        read(f"{web.url}/x.tar", 0, 4)
    assert waits == []


@pytest.mark.parametrize("mode", ["silent", "stall"])
def test_an_answer_that_does_not_come_is_given_up(web, mode, waits):
    web.mode = mode
    with pytest.raises(TimeoutError, match=r"^no answer within 0.4 s \(the last of 3 tries\)$"):
        read(f"{web.url}/x.tar", 0, 100)
    assert len(web.requests) == 3


def test_a_broken_off_answer_is_never_taken_for_the_whole(web):
    web.mode = "cut"
    for with_length in (True, False):
        web.with_length = with_length
        with pytest.raises(OSError, match="the last of 3 tries"):
            read(f"{web.url}/x.tar", 0, 100)


def test_a_server_that_ignores_ranges_is_noticed(web):
    web.ranges = False
    url = f"{web.url}/x.tar"
    assert remote.state(url, QUICK) == (len(CONTENT), 0, False)
    with pytest.raises(OSError, match="answered a request for a part with the whole file"):
        read(url, 0, 100)
    parts = []
    remote.download(url, lambda data, offset: parts.append((offset, data)), QUICK)
    assert b"".join(data for _, data in sorted(parts)) == CONTENT


def test_a_file_of_another_size_is_noticed(web, waits):
    with pytest.raises(ChangedError, match=f"has {len(CONTENT)} bytes now, not 50"):
        read(f"{web.url}/x.tar", 0, 10, size=50)
    assert waits == []


def test_downloads_in_pieces_and_again_from_the_start_where_there_are_none(web, monkeypatch):
    monkeypatch.setattr(remote, "_PIECE", 4000)
    url, written = f"{web.url}/x.tar", {}
    remote.download(url, lambda data, offset: written.update({offset: data}), QUICK)
    assert [(offset, len(data)) for offset, data in written.items()] == [(0, 4000), (4000, 4000), (8000, 2240)]
    assert b"".join(written.values()) == CONTENT
    web.ranges, web.failures = False, 1
    remote.download(url, lambda data, offset: written.update({offset: data}), QUICK)
    assert written[0].startswith(CONTENT[:100])


def test_lists_a_web_servers_page(web):
    web.files["folder/"] = b'<a href="1.tar">1</a> <a href="sub/">sub</a> <a href="..">up</a>'
    assert remote.list_names(f"{web.url}/folder/", QUICK) == ["1.tar", "sub"]


class HungFileSystem(MemoryFileSystem):
    """Never returns from a read, as a library without a timeout; not async."""

    protocol = "hung"
    released = threading.Event()

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.released.wait()
        return b""


def test_a_library_that_hangs_is_left_behind():
    fsspec.register_implementation("hung", HungFileSystem, clobber=True)
    start = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match=r"no answer within 0.4 s"):
            read("hung://a/x", 0, 5)
    finally:
        HungFileSystem.released.set()
    assert time.monotonic() - start < 30  # for ever otherwise


def test_an_hf_address_is_one_range_request(monkeypatch):
    asked = []

    def get(method, url, *, headers, **_):
        asked.append((method, url, headers["range"]))
        return SimpleNamespace(content=CONTENT[10:20])

    hub = HfFileSystem()
    path = HfFileSystemResolvedRepositoryPath("dataset", "me/set", "main", "x.tar")
    monkeypatch.setattr(HfFileSystem, "resolve_path", lambda *_, **__: path)
    monkeypatch.setattr(hf_file_system, "http_backoff", get)
    monkeypatch.setattr(hf_file_system, "hf_raise_for_status", lambda _: None)
    assert read("hf://datasets/me/set/x.tar", 10, 20) == CONTENT[10:20]
    assert asked == [("GET", hub.url("datasets/me/set/x.tar"), "bytes=10-19")]


def test_unknown_protocols_and_missing_packages_are_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, message in (("nope://x/y", "Protocol not known: nope"), ("gs://x/y", "a package is missing: .*gcsfs")):
        with pytest.raises(UnusableAddressError, match=message) as caught:
            remote.state(url, QUICK)
        assert "\n" not in str(caught.value)


@pytest.fixture
def store():
    with object_store():
        yield


def test_an_object_store_at_an_endpoint_of_the_environment(store, monkeypatch, waits):
    url, ample = "s3://bucket/d/x.tar", RemoteConfig(timeout_s=20, retries=1)
    remote.write_whole(url, CONTENT, ample)
    assert remote.state(url, ample).size == len(CONTENT)
    assert remote.state(url, ample).mtime_ns > 0
    assert remote.read_range(url, 7, 77, size=len(CONTENT), remote=ample) == CONTENT[7:77]
    assert remote.read_whole(url, ample) == CONTENT
    assert remote.list_names("s3://bucket/d", ample) == ["x.tar"]
    fsspec.filesystem("s3").pipe_file("bucket/d/x.tar", CONTENT[:50])  # by somebody else
    assert remote.state(url, ample).size == 50  # not what the listing said before
    with pytest.raises(OSError, match="10 instead of 60 bytes came"):
        remote.read_range(url, 40, 100, size=len(CONTENT), remote=ample)
    waits.clear()
    for absent in ("s3://bucket/none", "s3://none/x"):
        with pytest.raises(FileNotFoundError, match="not there"):
            remote.state(absent, ample)
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        remote.state("s3://bucket/d", ample)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(PermissionError, match="no usable credentials: Unable to locate credentials"):
        remote.state(url, ample)
    assert waits == []


def test_the_store_librarys_own_retries_do_not_multiply_ours(web, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", web.url)
    fsspec.filesystem("s3").clear_instance_cache()
    web.failures = 1000
    with pytest.raises(OSError, match="the last of 3 tries"):
        remote.read_range("s3://bucket/x", 0, 10, size=10, remote=RemoteConfig(timeout_s=20, retries=2))
    assert len(web.requests) == 3
    web.failures, web.mode, web.files = 0, "cut", {"bucket/x": CONTENT}
    web.requests.clear()
    with pytest.raises(OSError, match="the last of 3 tries"):
        remote.read_range("s3://bucket/x", 0, 10, size=10, remote=RemoteConfig(timeout_s=20, retries=2))
    assert len(web.requests) == 3
    web.mode = "silent"
    with pytest.raises(TimeoutError, match=r"no answer within 0.4 s \(the last of 3 tries\)"):
        remote.read_range("s3://bucket/x", 0, 10, size=10, remote=QUICK)
    fsspec.filesystem("s3").clear_instance_cache()


class RefusedError(Exception):
    """As the libraries' own errors, which hold the status in one place or another."""

    def __init__(self, **attributes):
        super().__init__("two\nlines")
        self.__dict__.update(attributes)


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "final", "advice"),
    [
        (RefusedError(code="404"), FileNotFoundError, True, "check the address"),
        (RefusedError(response={"ResponseMetadata": {"HTTPStatusCode": 403}}), PermissionError, True, "credentials"),
        (RefusedError(status=503), OSError, False, "the network"),
        (RefusedError(), OSError, False, "the network"),
        (NoCredentialsError("none"), PermissionError, True, "credentials"),
        (ImportError("gcsfs"), UnusableAddressError, True, "install"),
        (OSError(28, "No space left on device"), OSError, True, "make room"),
        (OSError(12, "Cannot allocate memory"), OSError, False, "free memory"),
        (OSError(24, "Too many open files"), OSError, False, "ulimit -n"),
        (ConnectionResetError(104, "Connection reset by peer"), OSError, False, "the network"),
    ],
)
def test_every_librarys_error_becomes_one_line(error, kind, final, advice):
    explained = explain(error, 5.0)
    assert isinstance(explained, kind)
    assert is_final(explained) is final
    assert advice in hint(explained)
    assert "\n" not in str(explained)


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(web, caplog):
    """Closed in the child they would be lost to the parent, which waits at the same epoll set."""
    read(f"{web.url}/x.tar", 0, 4)
    child = os.fork()
    if child == 0:
        try:
            read(f"{web.url}/x.tar", 4, 8)
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert read(f"{web.url}/x.tar", 8, 12) == CONTENT[8:12]
    assert not caplog.messages
