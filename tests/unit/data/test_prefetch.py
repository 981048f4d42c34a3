import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import sample_ref

from clipx.data import prefetch
from clipx.data.prefetch import Prefetcher, Span, merge_spans, read_members
from clipx.storage.tar import Member

SIZE = 100


class Shards:
    """Shards of samples with two members of 100 bytes each, one after the other."""

    def __init__(self):
        self.reads, self.opened = [], []
        self.local = False
        self.error = None
        self.gate = threading.Event()
        self.gate.set()

    def open(self, source, shard):
        self.gate.wait()
        self.opened.append((source, shard))
        return None if self.local else File(self, shard)

    def members(self, ref):
        return [Member("jpg", ref.index * 2 * SIZE, SIZE), Member("txt", (ref.index * 2 + 1) * SIZE, SIZE)]


class File:
    size = 1 << 40

    def __init__(self, shards, shard):
        self._shards, self._shard = shards, shard

    def read_at(self, offset, length):
        self._shards.gate.wait()
        self._shards.reads.append((self._shard, offset, length))
        if self._shards.error:
            raise self._shards.error
        return b"".join(
            bytes([self._shard, nth % 251]) * (SIZE // 2)
            for nth in range(offset // SIZE, -(-(offset + length) // SIZE))
        )

    def close(self):
        pass


def sample(ref):
    return [bytes([ref.shard, nth % 251]) * (SIZE // 2) for nth in (ref.index * 2, ref.index * 2 + 1)]


@pytest.fixture
def shards():
    return Shards()


@pytest.fixture
def prefetcher(shards):
    return Prefetcher(shards, connections=3)


def test_samples_that_lie_together_are_one_request(shards, prefetcher):
    refs = [sample_ref(0, 1, i) for i in (5, 3, 9, 4)]
    prefetcher.expect(refs, until=2)
    assert [prefetcher.take(ref) for ref in refs] == [sample(ref) for ref in refs]
    assert shards.reads == [(1, 600, 1400)]


def test_shards_and_far_places_are_requests_of_their_own(shards, prefetcher):
    refs = [sample_ref(0, 1, 0), sample_ref(0, 1, 20_000), sample_ref(1, 2, 7), sample_ref(0, 2, 8)]
    prefetcher.expect(refs, until=2)
    assert [prefetcher.take(ref) for ref in refs] == [sample(ref) for ref in refs]
    assert sorted(shards.reads) == [(1, 0, 200), (1, 4_000_000, 200), (2, 1400, 200), (2, 1600, 200)]


def test_what_was_not_expected_or_is_local_is_read_directly(shards, prefetcher):
    assert prefetcher.take(sample_ref(0, 0, 0)) is None
    shards.local = True
    prefetcher.expect([sample_ref(0, 0, 0)], until=0)
    assert prefetcher.take(sample_ref(0, 0, 0)) is None
    assert shards.opened == [(0, 0)]
    assert prefetcher.buffered_bytes == 0


def test_bytes_are_freed_once_all_samples_are_taken(shards, prefetcher):
    refs = [sample_ref(0, 1, i) for i in (*range(10), 20_000, 20_001)]
    prefetcher.expect(refs, until=2)
    prefetcher.take(refs[10])
    for ref in refs[:9]:
        prefetcher.take(ref)
        assert prefetcher.buffered_bytes == 2000 + 400
    prefetcher.take(refs[9])
    assert prefetcher.buffered_bytes == 400
    prefetcher.take(refs[11])
    assert prefetcher.buffered_bytes == 0
    assert prefetcher.take(refs[0]) is None
    assert not prefetcher._live


def test_a_sample_that_is_expected_twice_is_handed_over_twice(shards, prefetcher):
    prefetcher.expect([sample_ref(0, 1, 0), sample_ref(0, 1, 1)], until=1)
    prefetcher.expect([sample_ref(0, 1, 0, epoch=1)], until=5)
    prefetcher.forget(3)
    assert [prefetcher.take(sample_ref(0, 1, 0)) for _ in range(3)] == [sample(sample_ref(0, 1, 0))] * 2 + [None]
    assert len(shards.reads) == 1


def test_forgets_what_was_expected_until_earlier_batches(shards, prefetcher):
    prefetcher.expect([sample_ref(0, 1, 0), sample_ref(0, 1, 1)], until=3)
    prefetcher.expect([sample_ref(0, 2, 0)], until=4)
    prefetcher.take(sample_ref(0, 1, 0))
    prefetcher.forget(3)
    assert prefetcher.take(sample_ref(0, 1, 1)) == sample(sample_ref(0, 1, 1))
    prefetcher.expect([sample_ref(0, 3, 0), sample_ref(0, 3, 1)], until=3)
    prefetcher.take(sample_ref(0, 3, 0))
    prefetcher.forget(4)
    assert prefetcher.take(sample_ref(0, 3, 1)) is None
    assert prefetcher.take(sample_ref(0, 2, 0)) == sample(sample_ref(0, 2, 0))
    assert prefetcher.buffered_bytes == 0


def test_an_error_of_the_background_is_raised_where_its_sample_is_taken(shards, prefetcher):
    shards.error = OSError("gone")
    prefetcher.expect([sample_ref(0, 1, 0), sample_ref(0, 1, 1)], until=3)
    for index in (0, 1):
        with pytest.raises(OSError, match="gone"):
            prefetcher.take(sample_ref(0, 1, index))
    assert len(shards.reads) == 1


def test_who_waits_fetches_what_no_thread_has_begun(shards, monkeypatch):
    """Otherwise a reader would wait for all that was queued before."""
    prefetcher = Prefetcher(shards, connections=1)
    shards.gate.clear()
    prefetcher.expect([sample_ref(0, 9, 0)], until=3)  # the only thread hangs in it
    prefetcher.expect([sample_ref(0, 1, 0)], until=3)
    taken = []
    reader = threading.Thread(target=lambda: taken.append(prefetcher.take(sample_ref(0, 1, 0))), daemon=True)
    monkeypatch.setattr(shards, "open", lambda source, shard: Free(shards, shard))
    reader.start()
    reader.join(20)
    taken_before = list(taken)
    shards.gate.set()
    assert taken_before == [sample(sample_ref(0, 1, 0))]


class Free(File):
    def read_at(self, offset, length):
        content = sample(sample_ref(0, self._shard, offset // (2 * SIZE)))
        return b"".join(content)[:length]


def test_threads_end_when_there_is_nothing_to_do(shards, monkeypatch):
    monkeypatch.setattr(prefetch, "_IDLE_S", 0.01)
    prefetcher = Prefetcher(shards, connections=4)
    for round_ in range(3):
        refs = [sample_ref(0, shard, round_) for shard in range(8)]
        prefetcher.expect(refs, until=2)
        assert [prefetcher.take(ref) for ref in refs] == [sample(ref) for ref in refs]
        with prefetcher._changed:
            assert prefetcher._num_threads <= 4
        for _ in range(1000):
            if not prefetcher._num_threads:
                break
            threading.Event().wait(0.01)
        assert prefetcher._num_threads == 0


spans = st.lists(st.builds(lambda start, length: Span(start, start + length), st.integers(0, 500), st.integers(0, 60)))


@settings(max_examples=200)
@given(spans, st.integers(0, 40), st.integers(1, 200))
def test_merged_ranges_hold_every_span_and_little_else(wanted, gap, longest):
    merged = merge_spans(wanted, gap=gap, longest=longest)
    assert merged == sorted(merged)
    for span in wanted:
        assert any(range_.start <= span.start and span.stop <= range_.stop for range_ in merged)
    for range_ in merged:
        inside = [span for span in wanted if range_.start <= span.start and span.stop <= range_.stop]
        assert range_.stop - range_.start <= max(longest, *(span.stop - span.start for span in inside))
        covered = sorted(inside)
        reach = range_.start
        for span in covered:
            assert span.start - reach <= gap
            reach = max(reach, span.stop)
        assert reach == range_.stop


@settings(max_examples=100)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.data())
def test_members_are_cut_out_of_merged_reads(sizes, data):
    content = bytes(i % 251 for i in range(sum(sizes)))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    chosen = data.draw(st.permutations(range(len(sizes)))).copy()[: data.draw(st.integers(1, len(sizes)))]
    members = [Member("x", starts[i], sizes[i]) for i in chosen]

    class Bytes:
        size = len(content)

        def read_at(self, offset, length):
            return content[offset : offset + length]

        def close(self):
            pass

    assert read_members(Bytes(), members) == [content[starts[i] : starts[i] + sizes[i]] for i in chosen]
