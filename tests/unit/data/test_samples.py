"""Samples and parts of batches: replacements of bad samples, and what is drawn for each sample."""

import pytest
from shard_files import png, write_shards, write_tar
from streams import BAD, make_order, make_stream, two_epochs

from clipx.data.index.shard_index import build_index
from clipx.data.samples import SampleReader
from clipx.errors import RunError


def test_bad_samples_are_replaced_by_the_next_good_one_of_the_lane(tmp_path):
    paths = write_shards(tmp_path, [20, 20], replaced=BAD)
    index = build_index([str(tmp_path)])
    order = make_order(index, lanes=4)
    records = {}
    for batch in make_stream(index, order).batches(0, two_epochs(order)):
        passed = set()
        for slot, ref in enumerate(order.sample_refs(batch.index)):
            used, attempt = ref, 0
            while used.sample_id in BAD:
                passed.add(used.sample_id)
                attempt += 1
                used = order.replacement(batch.index, slot, attempt)
            assert batch.sample_id_I[slot] == used.sample_id
        assert {record.sample_id for record in batch.bad} == passed
        assert len(batch.bad) == len(passed)
        records |= {record.sample_id: record for record in batch.bad}
    assert set(records) == set(BAD)
    assert {record.shard for record in records.values()} == {paths[0]}
    assert all(record.key == f"{number:06d}" for number, record in records.items())
    assert records[5].reason == "no picture under 'jpg;png'"
    assert "no caption under 'txt'" in records[4].reason


def test_bad_samples_are_read_once_however_often_they_are_met(tmp_path, monkeypatch):
    write_shards(tmp_path, [30], replaced={i: {"txt": b"no picture"} for i in range(20)})
    index = build_index([str(tmp_path)])
    read, real = [], SampleReader.read

    def count(self, ref, *, out):
        read.append(ref.sample_id)
        return real(self, ref, out=out)

    monkeypatch.setattr(SampleReader, "read", count)
    stream = make_stream(index, make_order(index, lanes=2))
    assert len(set().union(*(batch.bad for batch in stream.batches(0, 6)))) == 20
    assert sorted(sample for sample in read if sample < 20) == list(range(20))


def test_pictures_captions_and_randomness_belong_to_epoch_and_sample(tmp_path):
    """The same sample looks different in the next epoch, wherever it stands; one of its captions is drawn."""
    captions = [f"caption {i}" for i in range(5)]
    record = ('{"captions": ["' + '", "'.join(captions) + '"]}').encode()
    write_shards(tmp_path, [40], replaced={i: {"png": png(i), "json": record} for i in range(40)})
    index = build_index([str(tmp_path)])
    seen = {}
    for options in ({"lanes": 2}, {"lanes": 4}):
        order = make_order(index, **options)
        for batch in make_stream(index, order, data={"caption_key": "json:captions"}).batches(0, 6):
            texts = batch.tokens_T.split(batch.lengths_B.tolist())
            for slot, ref in enumerate(order.sample_refs(batch.index)):
                text = bytes(texts[slot].tolist()).decode()
                shift = int(batch.images_IHWC[slot, 0, 0, 0]) - ref.sample_id
                key = (ref.epoch, ref.sample_id)
                assert seen.setdefault(key, (text, shift)) == (text, shift)
                assert text in captions
    assert {text for text, _ in seen.values()} == set(captions)
    both = [sample for epoch, sample in seen if epoch == 0 and (1, sample) in seen]
    assert sum(seen[0, sample] != seen[1, sample] for sample in both) > len(both) // 2


def test_source_without_a_good_pair_is_an_error_that_names_what_was_looked_for(tmp_path):
    write_shards(tmp_path, [30])
    index = build_index([str(tmp_path)])
    for workers in (0, 2):
        with pytest.raises(RunError) as caught:
            next(
                make_stream(index, make_order(index), data={"caption_key": "json:captions"}, workers=workers).batches()
            )
        message = str(caught.value)
        assert "\n" not in message
        for part in ("101 samples in a row", "'json:captions'", "members there: png, txt", "set data.image_key"):
            assert part in message


def test_names_with_dots_are_blamed_in_few_words(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"video{i}.{n:03d}.png", b"x") for i in range(30) for n in range(101)])
    index = build_index([str(tmp_path)])
    with pytest.raises(RunError, match=r"there are 101: a sample's key ends at the first dot") as caught:
        next(make_stream(index, make_order(index)).batches())
    assert len(str(caught.value)) < 800
    assert "members there: 000.png, 001.png, " in str(caught.value)
    assert "009.png and 91 more)" in str(caught.value)


def test_names_with_dots_are_blamed_with_the_keys_if_they_are_few(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{i:03d}.v2.{e}", b"x") for i in range(30) for e in ("png", "txt")])
    index = build_index([str(tmp_path)])
    with pytest.raises(RunError, match=r"members there: v2\.png, v2\.txt.*data\.image_key.*; a sample's key ends at"):
        next(make_stream(index, make_order(index)).batches())
