"""The whole loader on small shards: the same batches for every number of ranks and workers, bad samples included."""

import atexit
import multiprocessing.util
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from batches import assert_same, join
from shard_files import write_shards
from streams import BAD, make_order, make_stream, two_epochs

from clipx.config.data import AugmentConfig
from clipx.data.buffers import ImageBuffers
from clipx.data.index.shard_index import build_index
from clipx.data.transforms import Decoding, TrainTransform
from clipx.errors import RunError

SETS = {
    "many shards": [7, 3, 11, 5, 0, 13, 2, 9, 8, 6, 10, 4, 1, 12],
    "fewer shards than lanes": [50, 47],
    "one shard": [97],
    "hardly larger than the batch": [6, 7],
}
AUGMENT = AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5)


def global_batches(index, order, start, stop, *, world_size=1, **options):
    """The ranks' batches joined."""
    ranks = [
        list(make_stream(index, order, rank=rank, world_size=world_size, **options).batches(start, stop))
        for rank in range(world_size)
    ]
    assert {len(batch) for batches in ranks for batch in batches} == {12 // world_size}
    return [join(parts) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("bad", [{}, BAD], ids=["good", "bad"])
@pytest.mark.parametrize("counts", SETS.values(), ids=SETS)
def test_batches_are_the_same_for_every_number_of_ranks(tmp_path, counts, bad):
    write_shards(tmp_path, counts, replaced=bad)
    index = build_index([str(tmp_path)])
    order = make_order(index)
    stop = two_epochs(order)
    expected = global_batches(index, order, 0, stop)
    if not bad:
        assert [b.sample_id_I.tolist() for b in expected] == [
            order.sample_refs(t).sample_id_B.tolist() for t in range(stop)
        ]
        assert not any(b.bad for b in expected)
    assert all(b.slot_I.tolist() == list(range(12)) for b in expected)
    for world_size in (2, 3, 4, 6):
        assert_same(global_batches(index, order, 0, stop, world_size=world_size), expected)


# every pair on one set, and one pair on each other set; the whole cross is long
CROSS = [
    pytest.param(
        world_size,
        workers,
        counts,
        marks=[] if counts == "many shards" or (world_size, workers) == (4, 3) else [pytest.mark.full],
    )
    for counts in SETS
    for world_size in (1, 2, 3, 4, 6)
    for workers in (1, 3)
]


@pytest.mark.parametrize(("world_size", "workers", "counts"), CROSS)
def test_batches_are_the_same_for_every_number_of_workers(tmp_path, world_size, workers, counts):
    write_shards(tmp_path, SETS[counts], replaced=BAD)
    index = build_index([str(tmp_path)])
    order = make_order(index)
    transform = TrainTransform(8, AUGMENT, decode="fast")
    stop = two_epochs(order)
    expected = global_batches(index, order, 0, stop, transform=transform)
    got = global_batches(index, order, 0, stop, transform=transform, world_size=world_size, workers=workers)
    assert_same(got, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_starting_at_a_batch_equals_skipping_to_it(tmp_path, workers):
    write_shards(tmp_path, SETS["many shards"], replaced=BAD)
    index = build_index([str(tmp_path)])
    expected = global_batches(index, make_order(index), 0, 14)
    assert_same(global_batches(index, make_order(index), 5, 14, workers=workers), expected[5:])


def test_workers_are_no_more_than_slots(tmp_path):
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    stream = make_stream(index, make_order(index), rank=5, world_size=6, workers=9)
    batches = stream.batches(0, 2)
    assert [batch.slot_I.tolist() for batch in batches] == [[10, 11], [10, 11]]
    assert stream.workers == 2


def runs(pid):
    """Whether a process lives; one that has ended stays in the table until its new parent looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children():
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(pid) for pid in file.read().split()]


def test_closing_ends_the_workers_and_signals_do_not(tmp_path):
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    before = set(children())
    state = torch.get_rng_state()
    batches = make_stream(index, make_order(index), workers=2).batches()
    first = next(batches)
    workers = set(children()) - before
    assert len(workers) == 2
    for pid in workers:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
    later = [next(batches) for _ in range(6)]
    assert [first.index, *(batch.index for batch in later)] == list(range(7))
    assert workers <= set(children())
    batches.close()
    assert not workers & set(children())
    assert torch.equal(torch.get_rng_state(), state)


def test_dead_worker_is_one_line(tmp_path):
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    before = set(children())
    batches = make_stream(index, make_order(index), workers=2).batches()
    next(batches)
    os.kill(min(set(children()) - before), signal.SIGKILL)
    with pytest.raises(RunError, match=r"a loader process died: .*; then run the same command again") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert set(children()) == before


class Stuck:
    """A read that takes minutes, from the third batch of a loader process on."""

    def __init__(self, folder, *, reads):
        self.folder, self.reads = folder, reads

    def __call__(self, data, *, seed, out):
        self.reads -= 1
        if self.reads < 0:
            (self.folder / str(os.getpid())).touch()
            time.sleep(90)
        return Decoding(by_pillow=False, deep=False)


def test_workers_in_the_middle_of_a_read_do_not_hold_up_the_end(tmp_path):
    write_shards(tmp_path / "set", [30])
    index = build_index([str(tmp_path / "set")])
    (tmp_path / "stuck").mkdir()
    before = set(children())
    stuck = Stuck(tmp_path / "stuck", reads=2 * 12 // 3)
    batches = make_stream(index, make_order(index), transform=stuck, workers=3).batches()
    next(batches)
    for _ in range(600):
        if len(list(stuck.folder.iterdir())) == 3:
            break
        time.sleep(0.05)
    batches.close()
    assert len(list(stuck.folder.iterdir())) == 3
    assert set(children()) == before


class Broken:
    """A transform with a bug."""

    def __call__(self, data, *, seed, out):
        raise RuntimeError("bug")


def test_bug_in_a_worker_keeps_its_traceback(tmp_path):
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker process") as caught:
        next(make_stream(index, make_order(index), transform=Broken(), workers=1).batches())
    assert not isinstance(caught.value, RunError)


def test_workers_die_with_a_trainer_that_is_killed(tmp_path, monkeypatch):
    """Also in a read that never returns, where no worker looks for its parent."""
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    pids, told = os.pipe()
    child = os.fork()
    if child == 0:
        stream = make_stream(index, make_order(index), workers=2)
        monkeypatch.setattr(stream._reader, "read", lambda *_, **__: time.sleep(1000))
        threading.Timer(1.0, lambda: os.write(told, " ".join(map(str, children())).encode())).start()
        next(stream.batches())
    workers = list(map(int, os.read(pids, 100).split()))
    assert len(workers) == 2
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while left := [pid for pid in workers if runs(pid)]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            pytest.fail("a worker outlived its trainer")
        time.sleep(0.05)


def test_process_that_exits_with_an_open_stream_ends_its_workers(tmp_path):
    """They ignore multiprocessing's SIGTERM at exit, so without a handler of ours the exit would wait for ever."""
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    pids, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            atexit._clear()  # what other tests left there is slow, and not the matter here
            atexit.register(multiprocessing.util._exit_function)
            batches = make_stream(index, make_order(index), workers=2).batches()
            next(batches)
            os.write(told, " ".join(map(str, children())).encode())
            atexit._run_exitfuncs()  # an interpreter's last act; a fresh one would take seconds to import torch
        finally:
            os._exit(3)
    workers = os.read(pids, 100).split()
    for _ in range(300):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        for pid in (child, *map(int, workers)):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the process did not end within 30 s")
    assert os.waitstatus_to_exitcode(status) == 3
    assert len(workers) == 2
    assert not any(os.path.exists(f"/proc/{int(pid)}") for pid in workers)


def test_batches_that_are_kept_are_not_written_over(tmp_path):
    """Buffers come back when a batch is dropped; while all are lent, batches get memory of their own."""
    write_shards(tmp_path, [60])
    index = build_index([str(tmp_path)])
    kept = list(make_stream(index, make_order(index), workers=2).batches(0, 25))
    assert_same(kept, list(make_stream(index, make_order(index)).batches(0, 25)))


def test_a_buffer_serves_many_batches(tmp_path, monkeypatch):
    write_shards(tmp_path, [60])
    index = build_index([str(tmp_path)])
    lent = []
    real = ImageBuffers.lend
    monkeypatch.setattr(ImageBuffers, "lend", lambda self, buffer: lent.append(buffer) or real(self, buffer))
    for batch in make_stream(index, make_order(index), workers=2).batches(0, 40):
        view = batch.images_IHWC[3:5].flatten()
        del batch
        assert int(view[0]) >= 0
    assert len(lent) == 40
    assert set(lent) == set(range(5))
