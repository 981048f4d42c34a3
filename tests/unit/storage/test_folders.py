"""A disk and an S3 server, asked the same things; and a store that errs."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from servers import object_store

from clipx.storage import remote
from clipx.storage.folders import Folder, folder_at, write_atomically


@pytest.fixture(scope="module")
def s3() -> Iterator[None]:
    with object_store():
        yield


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return folder_at(tmp_path / "a" / "run")
    request.getfixturevalue("s3")
    return folder_at(f"s3://bucket/{tmp_path.name}/run/")


def test_holds_files_and_folders(folder: Folder) -> None:
    assert (folder.names(), folder.sizes(), folder.name) == ([], {}, "run")
    inner = folder.child("inner")
    for each in (folder, inner):
        each.make()
        each.write("b.json", "{}")
        with each.create("a.bin") as file:
            file.write(b"1234")
            file.write(memoryview(b"56"))
    assert folder.names() == ["a.bin", "b.json", "inner"]
    assert folder.sizes() == inner.sizes() == {"a.bin": 6, "b.json": 2}
    assert inner.read("a.bin") == b"123456"
    inner.write("a.bin", "new")
    assert inner.read("a.bin") == b"new"
    moved = inner.move("moved")
    assert (moved.address, moved.names()) == (f"{folder}/moved", ["a.bin", "b.json"])
    assert (inner.names(), folder.names()) == ([], ["a.bin", "b.json", "moved"])
    for _ in range(2):  # what is not there is removed already
        folder.remove_file("a.bin")
        moved.remove()
    assert folder.names() == ["b.json"]
    with pytest.raises(FileNotFoundError):
        folder.read("a.bin")


def test_a_file_is_read_from_any_place(folder: Folder) -> None:
    content = os.urandom(9_000_000)  # more than is read ahead
    folder.make()
    with folder.create("x") as file:
        file.write(content)
    with folder.open("x") as file:
        for start in (8_999_990, 5, 7_000_000, 6):
            file.seek(start)
            assert file.read(4_500_000) == content[start : start + 4_500_000]
        assert file.seek(-3, os.SEEK_END) == len(content) - 3
        assert file.read() == content[-3:]


def test_what_breaks_off_is_no_file_in_a_store(folder: Folder) -> None:
    folder.make()
    with suppress(InterruptedError), folder.create("x") as file:
        file.write(b"half")
        raise InterruptedError
    assert folder.names() == (["x"] if folder.renames else [])


def failing(method: Callable[..., Any], failures: int) -> tuple[Callable[..., Any], list[str]]:
    calls: list[str] = []

    def call(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(path)
        if len(calls) <= failures:
            raise ConnectionResetError("gone for a moment")
        return method(self, path, *args, **kwargs)

    return call, calls


@pytest.mark.parametrize("method", ["pipe_file", "cat_file", "ls"])
def test_a_store_that_errs_twice_and_recovers_is_asked_again(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    call, calls = failing(getattr(MemoryFileSystem, method), failures=2)
    monkeypatch.setattr(MemoryFileSystem, method, call)
    folder = folder_at("memory://erring/run")
    folder.write("x", "content")
    assert folder.read("x") == b"content"
    assert folder.names() == ["x"]
    assert len(calls) >= 3


def test_a_store_that_is_gone_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    call, calls = failing(MemoryFileSystem.pipe_file, failures=99)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", call)
    with pytest.raises(OSError, match=r"gone for a moment \(the last of 5 tries\)") as caught:
        folder_at("memory://erring/run").write("x", "content")
    assert "\n" not in str(caught.value)
    assert len(calls) == 5


def test_addresses() -> None:
    assert folder_at("file:///a/b/").path == Path("/a/b")
    assert folder_at("a/b").path == Path("a/b")
    assert folder_at("s3://bucket/a").path is None
    assert folder_at(Path("a")) == folder_at("a/") != folder_at("b")


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "status.json", "old")
    write_atomically(tmp_path / "status.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"status.json": "new"}
