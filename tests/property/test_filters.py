"""Filters and indexes: what passes is what a plain reading of the rule says, however the shards are cut and indexed."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import write_tar

from clipx.data import parallel
from clipx.data.filters.filters import SampleFilter
from clipx.data.index import duplicates
from clipx.data.index.shard_index import build_index, load_index
from clipx.data.index.shard_paths import naturally_sorted, packed

Captions = st.lists(st.text(alphabet="ab ", max_size=6), min_size=1, max_size=12)


@settings(max_examples=40)
@given(
    captions=Captions, cut=st.integers(1, 5), words=st.integers(1, 3), threads=st.integers(1, 4), part=st.integers(1, 8)
)
def test_what_passes_is_what_the_rule_says(captions, cut, words, threads, part):
    expected, seen = [], set()
    for number, caption in enumerate(captions):
        if len(caption.split()) >= words and caption not in seen:
            expected.append(f"{number:04d}")
            seen.add(caption)
    threads_before, part_before = parallel.THREADS, duplicates._AT_ONCE
    parallel.THREADS, duplicates._AT_ONCE = threads, part
    try:
        with tempfile.TemporaryDirectory() as folder:
            for shard, first in enumerate(range(0, len(captions), cut)):
                members = [(f"{i:04d}.txt", text.encode()) for i, text in enumerate(captions)][first : first + cut]
                write_tar(Path(folder) / "s" / f"{shard}.tar", members)
            # one sample that always passes: an index of nothing is an error
            write_tar(Path(folder) / "s" / "99.tar", [("last.txt", b"x x x x")])
            filters = SampleFilter.parse([f"caption.words>={words}"], unique="caption")
            shards, place = [f"{folder}/s"], f"{folder}/i"
            index = build_index(shards, index_dir=place, filters=filters)
            for found in (index, build_index(shards, index_dir=place), load_index(shards, index_dir=place)):
                keys = [found.offsets(s).key(i) for s in range(len(found.paths)) for i in range(found.counts[s])]
                assert keys == [*expected, "last"]
                assert sum(found.left_out.values()) + found.num_samples == len(captions) + 1
                assert found.fingerprint() == index.fingerprint()
    finally:
        parallel.THREADS, duplicates._AT_ONCE = threads_before, part_before


@settings(max_examples=200)
@given(names=st.lists(st.from_regex(r"[a-c.]{0,2}[0-9]{1,4}[a-c.-]{0,2}[0-9]{0,3}\.tar", fullmatch=True), max_size=12))
def test_natural_order_keeps_names_and_puts_smaller_numbers_first(names):
    ordered = [name.decode() for name in naturally_sorted(packed(names)).tolist()]
    assert sorted(ordered) == sorted(names)
    assert ordered == [name.decode() for name in naturally_sorted(packed(names[::-1])).tolist()]
    plain = [f"{number}.tar" for number in sorted({len(name) * 7 % 13 for name in names})]
    assert naturally_sorted(packed(plain[::-1])).tolist() == [name.encode() for name in plain]
