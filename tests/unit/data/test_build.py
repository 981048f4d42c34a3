"""Config to readers."""

from shard_files import png, write_shards
from streams import make_order, make_stream

from clipx.data.index.shard_index import build_index


def test_reader_takes_the_config(tmp_path):
    write_shards(tmp_path, [30], replaced={i: {"png": png(i), "alt": b"another"} for i in range(30)})
    index = build_index([str(tmp_path)])
    order = make_order(index)
    data = {"image_key": "jpeg;png", "caption_key": "alt", "captions_per_image": 2, "equal_captions": "ignored"}
    (batch,) = make_stream(index, order, data=data).batches(0, 1)
    assert bytes(batch.tokens_T.tolist()).decode() == "another" * 24
    assert len(batch) == 24
    assert len(batch.slot_I) == len(batch.images_IHWC) == 12
    assert len(batch.group_id_B) == 24
    assert len(set(batch.group_id_B.tolist())) == 1
