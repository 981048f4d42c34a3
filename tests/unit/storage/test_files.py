import os

import fsspec
import pytest
from servers import WebServer

from clipx.storage.files import file_state, is_local, open_ranges, read_file, write_file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    yield str(tmp_path / "f") if request.param == "local" else "memory:///files-test"
    fsspec.filesystem("memory").store.clear()


def test_what_is_local():
    assert [is_local(path) for path in ("/a/b.tar", "b.tar", "s3://a/b", "pipe:cat a", "http://h/x")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_writes_and_reads_back(folder):
    write_file(f"{folder}/sub/a.bin", b"hello world")
    write_file(f"{folder}/sub/b.bin", b"x")
    write_file(f"{folder}/sub/b.bin", b"yy")
    assert read_file(f"{folder}/sub/a.bin") == b"hello world"
    assert read_file(f"{folder}/sub/b.bin") == b"yy"
    assert file_state(f"{folder}/sub/a.bin").size == 11
    assert file_state(f"{folder}/sub/a.bin").mtime_ns > 0


def test_reads_ranges(folder):
    write_file(f"{folder}/a.bin", bytes(range(100)))
    for sequential in (False, True):
        file = open_ranges(f"{folder}/a.bin", sequential=sequential)
        assert file.size == 100
        assert file.read_at(10, 5) == bytes(range(10, 15))
        assert file.read_at(98, 5) == bytes([98, 99])
        assert file.read_at(100, 5) == b""
        assert file.read_at(3, 1) == b"\3"
        file.close()


def test_what_is_absent_is_an_os_error(folder):
    write_file(f"{folder}/a.bin", b"x")
    for action in (file_state, open_ranges, read_file):
        with pytest.raises(FileNotFoundError):
            action(f"{folder}/none")


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    write_file(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_file(path, b"new")
    assert read_file(path) == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_web_server_cannot_be_written():
    with pytest.raises(PermissionError, match="http servers are only read"):
        write_file("http://127.0.0.1:1/x", b"")


def test_a_scan_over_a_network_takes_few_requests():
    with WebServer({"x.tar": bytes(9 << 20)}) as server:
        file = open_ranges(f"{server.url}/x.tar", sequential=True)
        server.requests.clear()
        for offset in range(0, 9 << 20, 50_000):
            assert len(file.read_at(offset, 512)) == 512
        for _ in range(3):
            assert len(file.read_at((9 << 20) - 100, 512)) == 100
        assert len(server.requests) == 3
        assert server.bytes_sent <= (9 << 20) + 1


def test_what_has_no_ranges_is_fetched_whole_once_and_said_once(tmp_path, caplog):
    with WebServer({"x.tar": b"0123456789"}) as server:
        server.ranges = False
        for with_length in (True, False):
            server.with_length = with_length
            assert file_state(f"{server.url}/x.tar").size == 10
            assert open_ranges(f"{server.url}/x.tar").read_at(3, 4) == b"3456"
            server.requests.clear()
            assert open_ranges(f"{server.url}/x.tar").read_at(3, 4) == b"3456"
            assert [span for _, span in server.requests] == ["bytes=0-0"]
        told = [line for line in caplog.messages if "gives no parts of files" in line]
        assert len(told) == 1
        assert str(tmp_path / "cache" / "shards") in told[0]


def test_a_command_is_run_once(tmp_path):
    address = f"pipe:echo x >> {tmp_path}/runs; printf 0123456789"
    assert file_state(address).size == 10
    assert open_ranges(address).read_at(3, 4) == b"3456"
    assert (tmp_path / "runs").read_text() == "x\n"
