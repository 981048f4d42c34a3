import errno
import fcntl
import multiprocessing
import os
import threading
import time
from contextlib import suppress

import pytest

from clipx.errors import InputError
from clipx.storage import shard_cache
from clipx.storage.shard_cache import Identity, ShardCache

FORK = multiprocessing.get_context("fork")


def shard(name, size=100, mtime_ns=1):
    return Identity(f"s3://bucket/{name}.tar", size, mtime_ns)


def content(identity):
    return (identity.url.encode() * 100)[: identity.size or 100]


def fetch_of(identity, calls=None):
    def fetch(write):
        if calls is not None:
            calls.append(identity.url)
        data = content(identity)
        write(data[:40], 0)
        write(data[40:], 40)

    return fetch


def read(cache, identity, **options):
    """The content by way of the cache; None where it has no room."""
    descriptor = cache.open(identity, options.pop("fetch", fetch_of(identity)), **options)
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, 10_000, 0)
    finally:
        os.close(descriptor)


def age(cache, seconds):
    """Makes all that lies there look used so long ago."""
    for entry in os.scandir(cache.folder):
        os.utime(entry, (time.time() - seconds,) * 2)


def kept(cache):
    return sorted(name.partition("-")[2] for name in os.listdir(cache.folder) if name != ".lock")


def test_fetches_once_and_keeps(tmp_path):
    calls = []
    for _ in range(2):
        cache = ShardCache(tmp_path / "c")
        assert read(cache, shard("a"), fetch=fetch_of(shard("a"), calls)) == content(shard("a"))
    assert calls == ["s3://bucket/a.tar"]


def test_a_shard_that_changed_is_another_file(tmp_path):
    cache, calls = ShardCache(tmp_path), []
    for identity in (shard("a"), shard("a", size=90), shard("a", mtime_ns=2), shard("b")):
        assert read(cache, identity, fetch=fetch_of(identity, calls)) == content(identity)
    assert len(calls) == 4


def test_a_file_of_the_wrong_size_is_fetched_again(tmp_path):
    cache = ShardCache(tmp_path)
    read(cache, shard("a"))
    os.truncate(tmp_path / shard("a").file_name, 60)
    assert read(cache, shard("a")) == content(shard("a"))


def test_what_breaks_off_leaves_nothing(tmp_path):
    cache = ShardCache(tmp_path)

    def broken(write):
        write(b"half", 0)
        raise OSError("connection lost")

    with pytest.raises(OSError, match="connection lost"):
        read(cache, shard("a"), fetch=broken)
    with pytest.raises(OSError, match="4 instead of 100 bytes came"):
        read(cache, shard("a"), fetch=lambda write: write(b"half", 0))
    assert kept(cache) == []
    assert read(cache, shard("a")) == content(shard("a"))


@pytest.mark.parametrize("fails", [False, True])
def test_who_waits_goes_on_when_the_holder_is_done(tmp_path, fails):
    """Also while the holder keeps the shard open; and in its place where it failed."""
    held, go_on, results = threading.Event(), threading.Event(), []

    def slow(write):
        held.set()
        go_on.wait(30)
        if fails:
            raise OSError("connection lost")
        fetch_of(shard("a"))(write)

    def hold():
        with suppress(OSError):
            results.append(ShardCache(tmp_path).open(shard("a"), slow))

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    waiter = threading.Thread(target=lambda: results.append(read(ShardCache(tmp_path), shard("a"))), daemon=True)
    waiter.start()
    time.sleep(0.1)  # so that it waits; sooner, the test would pass without having tested much
    go_on.set()
    holder.join(30)
    waiter.join(20)
    assert results[-1] == content(shard("a"))
    if not fails:
        os.close(results[0])


def test_a_shard_that_comes_between_looking_and_locking_is_not_fetched_again(tmp_path, monkeypatch):
    look = shard_cache._open_complete

    def look_too_early(path, size):
        monkeypatch.setattr(shard_cache, "_open_complete", look)
        read(ShardCache(tmp_path), shard("a"))

    monkeypatch.setattr(shard_cache, "_open_complete", look_too_early)
    calls = []
    assert read(ShardCache(tmp_path), shard("a"), fetch=fetch_of(shard("a"), calls)) == content(shard("a"))
    assert calls == []


def _die_halfway(cache):
    def fetch(write):
        write(b"half", 0)
        os._exit(9)

    cache.open(shard("a"), fetch)


def test_a_process_that_dies_leaves_no_wrong_file_and_no_lock(tmp_path):
    cache = ShardCache(tmp_path)
    child = FORK.Process(target=_die_halfway, args=(cache,))
    child.start()
    child.join(30)
    assert kept(cache) == ["a.tar.part"]
    assert read(cache, shard("b")) == content(shard("b"))
    assert kept(cache) == ["b.tar"]  # the abandoned part was removed
    assert read(cache, shard("a")) == content(shard("a"))


def _read_many(folder, number, log):
    cache = ShardCache(folder)
    for step in range(12):
        identity = shard(f"s{(number * 5 + step) % 6}")

        def fetch(write, identity=identity):
            with open(log, "a") as file:
                file.write(f"{identity.url}\n")
            time.sleep(0.02)
            fetch_of(identity)(write)

        assert read(cache, identity, fetch=fetch) == content(identity)


def test_many_processes_fetch_each_shard_once(tmp_path):
    children = [FORK.Process(target=_read_many, args=(tmp_path / "c", n, tmp_path / "log")) for n in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    fetched = (tmp_path / "log").read_text().splitlines()
    assert sorted(fetched) == [f"s3://bucket/s{n}.tar" for n in range(6)]


def _churn(folder, number):
    cache = ShardCache(folder, max_bytes=350)
    for step in range(40):
        identity = shard(f"s{(number * 7 + step * 3) % 9}")
        assert read(cache, identity, required=True) == content(identity)
        with cache._locked_folder():  # or one could go and the next come while they are added up
            assert sum(_sizes(folder).values()) <= 350


def _sizes(folder):
    """By inode: the other process may give a part its name meanwhile."""
    sizes = {}
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            if entry.name != ".lock":
                sizes[entry.inode()] = os.path.getsize(entry.path)
    return sizes


def test_many_processes_in_a_cache_that_is_too_small(tmp_path):
    children = [FORK.Process(target=_churn, args=(tmp_path, n)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_the_shards_used_longest_ago_make_room(tmp_path):
    cache = ShardCache(tmp_path, max_bytes=300)
    for name in "abc":
        read(cache, shard(name))
    age(cache, 1000)
    read(cache, shard("a"))
    assert read(cache, shard("d", size=150)) is not None
    assert kept(cache) == ["a.tar", "d.tar"]


def test_shards_in_use_stay_and_the_newcomer_is_not_kept(tmp_path, caplog):
    cache = ShardCache(tmp_path, max_bytes=250)
    for name in "abcd":
        assert (read(cache, shard(name)) is None) == (name in "cd")
    assert kept(cache) == ["a.tar", "b.tar"]
    assert len(caplog.messages) == 1
    assert "too small for the shards in use" in caplog.messages[0]
    assert read(cache, shard("e"), required=True) == content(shard("e"))  # nowhere else to read it


def test_an_open_shard_stays_readable_after_its_removal(tmp_path):
    cache = ShardCache(tmp_path, max_bytes=150)
    descriptor = cache.open(shard("a"), fetch_of(shard("a")))
    age(cache, 1000)
    assert read(cache, shard("b")) == content(shard("b"))
    assert kept(cache) == ["b.tar"]
    assert os.pread(descriptor, 1000, 0) == content(shard("a"))
    os.close(descriptor)


def test_a_part_that_is_being_written_is_counted_and_not_removed(tmp_path):
    cache = ShardCache(tmp_path, max_bytes=250)

    def fetch(write):
        age(cache, 1000)
        assert read(ShardCache(tmp_path, max_bytes=250), shard("b", size=200)) is None
        fetch_of(shard("a"))(write)

    assert read(cache, shard("a"), fetch=fetch) == content(shard("a"))
    assert kept(cache) == ["a.tar"]


def test_a_shard_larger_than_the_cache(tmp_path, caplog):
    cache = ShardCache(tmp_path, max_bytes=50)
    assert read(cache, shard("a")) is None
    assert read(cache, shard("b")) is None
    assert caplog.messages == [
        "a shard of 100 bytes is larger than the cache (50 bytes); such shards are read by ranges, without the cache"
    ]
    with pytest.raises(OSError, match=r"larger than the cache \(50 bytes\); make room there or set another data.cache"):
        read(cache, shard("a"), required=True)
    with pytest.raises(OSError, match="larger than the cache"):
        read(cache, shard("a", size=None), required=True)
    assert kept(cache) == []


def test_a_full_disk(tmp_path, caplog):
    cache = ShardCache(tmp_path)

    def full(write):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert read(cache, shard("a"), fetch=full) is None
    assert read(cache, shard("b"), fetch=full) is None
    assert [f"the disk of the cache {tmp_path} is full" in line for line in caplog.messages] == [True]
    with pytest.raises(OSError, match="is full; make room there"):
        read(cache, shard("a"), fetch=full, required=True)
    assert kept(cache) == []


def test_a_holder_that_stands_still_is_not_waited_for(tmp_path):
    cache = ShardCache(tmp_path, stall_s=0.2)
    with open(tmp_path / (shard("a").file_name + ".part"), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match=r"another process holds .* not written for 0.2 s"):
            read(cache, shard("a"))


def test_a_size_that_nobody_knows_is_counted_once_it_is_there(tmp_path):
    cache = ShardCache(tmp_path, max_bytes=150)
    unknown = [Identity(f"pipe:cat /x/{name}.tar | gzip -d", None, 0) for name in "ab"]
    for identity in unknown:
        assert read(cache, identity, required=True) == content(identity)
    assert len(kept(cache)) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match=r"cache folder '.*/file/c' cannot be written: .*; give another data.cache.folder"
    ):
        ShardCache(tmp_path / "file" / "c")


def test_the_default_lies_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))
    assert ShardCache.default().folder == tmp_path / "cache" / "shards"


def test_a_user_s_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"file/cache/shards' cannot be written: .*; give another .*CLIPX_CACHE"):
        ShardCache.default()


def test_what_others_put_into_the_folder_stays(tmp_path):
    for name in ("thesis.txt", "film.mp4.part", "0" * 32, "0" * 31 + "-a.tar"):
        (tmp_path / name).write_bytes(b"mine" * 100)
    (tmp_path / ("a" * 32 + "-link.tar")).symlink_to(tmp_path / "thesis.txt")
    before = set(os.listdir(tmp_path))
    cache = ShardCache(tmp_path, max_bytes=250)
    for name in "abcd":
        assert read(cache, shard(name)) == content(shard(name))
        age(cache, 1000)
    assert before < set(os.listdir(tmp_path))
    assert len(set(os.listdir(tmp_path)) - before - {".lock"}) == 2  # of the cache's own, as many as fit
    assert (tmp_path / "thesis.txt").read_bytes() == b"mine" * 100


def test_a_new_signature_finds_the_shard(tmp_path):
    cache, calls = ShardCache(tmp_path), []
    for secret in ("one", "other"):
        signed = Identity(f"https://u:{secret}@h/a.tar?X-Amz-Signature={secret}&n=1", 100, 1)
        read(cache, signed, fetch=fetch_of(signed, calls))
    assert len(calls) == 1
    assert read(cache, Identity("https://h/a.tar?n=2", 100, 1)) == content(Identity("https://h/a.tar?n=2", 100, 1))
    assert not any("one" in name or "other" in name for name in os.listdir(tmp_path))
