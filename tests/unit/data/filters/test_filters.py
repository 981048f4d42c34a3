import io
import json
import pickle
import shutil

import fsspec
import numpy as np
import pytest
from PIL import Image
from shard_files import write_shards, write_tar

from clipx.data.filters.conditions import Condition
from clipx.data.filters.filters import FILTER_FILE, SampleFilter
from clipx.data.filters.key_list import KeyList, hashed
from clipx.data.index import duplicates
from clipx.data.index.folder import COUNTS_FILE
from clipx.data.index.shard_index import build_index, load_index
from clipx.errors import InputError, RunError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPX_CACHE", str(tmp_path / "cache"))


def picture(width, height, kind="png", **options):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width % 256, 7, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def sample(key, width=8, height=8, caption="a b c", **record):
    return [
        (f"{key}.png", picture(width, height)),
        (f"{key}.txt", caption.encode()),
        (f"{key}.json", json.dumps(record).encode()),
    ]


def keys(index):
    return [index.offsets(s).key(i) for s in range(len(index.paths)) for i in range(index.counts[s])]


def filtered(tmp_path, where=(), **options):
    return build_index([str(tmp_path / "s")], index_dir=tmp_path / "i", filters=SampleFilter.parse(where, **options))


@pytest.mark.parametrize(
    ("text", "spelt", "passing", "failing"),
    [
        ("caption.words >= 3", "caption.words>=3", [3, 4], [2]),
        ("width<200", "width<200", [199], [200]),
        (" aspect <= 1.5 ", "aspect<=1.5", [1.5], [1.51]),
        ("json:similarity>0.28", "json:similarity>0.28", [0.29, "0.3"], [0.28, "high", True]),
        ("json:language in en, de", "json:language in en,de", ["en", "de"], ["fr", "en,de", 3]),
        ("json:NSFW!=NSFW", "json:NSFW!=NSFW", ["UNLIKELY", 3, False], ["NSFW"]),
        ("json:n==3", "json:n==3", [3, 3.0, "3"], [4, "three"]),
        ("parquet:clean==true", "parquet:clean==true", [True], [False, 1]),
        ("json:a b==x=y", "json:a b==x=y", ["x=y"], ["x"]),
    ],
)
def test_conditions(text, spelt, passing, failing):
    condition = Condition.parse(text)
    assert condition.text == spelt == Condition.parse(spelt).text
    test = condition.test()
    assert ([test(value) for value in passing], [test(value) for value in failing]) == (
        [True] * len(passing),
        [False] * len(failing),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption.word>=3", "no field 'caption.word'; did you mean caption.words?"),
        ("heigth>=3", "did you mean height?"),
        ("jsn:language==en", "did you mean json:language?"),
        ("json:==en", "did you mean json:NAME?"),
        ("width=>3", "no operator '=>'; did you mean >=?"),
        ("width=3", "no operator '='; did you mean ==?"),
        ("json:a on b", "no operator 'on'; did you mean in?"),
        ("width", "is not FIELD OPERATOR VALUE; write it as caption.words>=3"),
        ("width>=", "has no value"),
        ("json:a in x,,y", "has no value"),
        ("width>=wide", "compares numbers; give one instead of 'wide'"),
        ("json:similarity>=nan", "compares numbers"),
    ],
)
def test_conditions_that_are_none(text, message):
    with pytest.raises(InputError) as caught:
        Condition.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_filters_that_are_none(tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    for options, message in (
        ({"unique": "picture"}, "unique=picture: give one of image, caption, pair"),
        ({}, "leaves nothing out"),
        ({"keys": tmp_path / "absent"}, "absent cannot be read"),
        ({"without_keys": tmp_path / "empty"}, "is empty"),
    ):
        with pytest.raises(InputError, match=message):
            SampleFilter.parse([], **options)


def test_the_text_names_what_decides(tmp_path):
    (tmp_path / "a").write_text("1\n2\n")
    (tmp_path / "b").write_text("2\n\n1\r\n2\n")
    first, second = (SampleFilter.parse(["json:a==1"], keys=tmp_path / name, image_key="png") for name in "ab")
    assert first.text == second.text == f"keys of list {first.keys.digest}, json:a==1"
    assert SampleFilter.parse(["width>=3"], image_key="png").text == "width>=3, image_key png"
    assert SampleFilter.parse(["caption.words>=3"], unique="image", image_key="png").text == (
        "caption.words>=3, unique image, caption_key txt, image_key png"
    )
    assert first.id == second.id != SampleFilter.parse(["json:a==1"]).id > 0


def test_every_reason_is_counted(tmp_path):
    members = [
        sample("ok", 10, 20, similarity=0.3),
        sample("few", 10, 20, "a b", similarity=0.3),
        sample("long", 10, 20, "a b " + "c" * 30, similarity=0.3),
        sample("blank", 10, 20, " ", similarity=0.3),
        sample("small", 4, 20, similarity=0.3),
        sample("thin", 10, 50, similarity=0.3),
        sample("unlike", 10, 20, similarity=0.1),
        sample("unknown", 10, 20),
        sample("null", 10, 20, similarity=None),
        sample("list", 10, 20, similarity=[0.3]),
        [("no picture.txt", b"a b c"), ("no picture.json", b'{"similarity": 0.3}')],
        [("broken.png", b"rubbish"), ("broken.txt", b"a b c")],
        [("bad json.png", picture(10, 20)), ("bad json.txt", b"a b c"), ("bad json.json", b"{")],
    ]
    write_tar(tmp_path / "s" / "0.tar", [member for one in members for member in one])
    where = ["caption.words>=3", "caption.characters<=30", "width>=10", "height>=20", "min_side>=10", "aspect<=3"]
    index = filtered(tmp_path, [*where, "json:similarity>=0.28"])
    assert keys(index) == ["ok"]
    assert {reason: number for reason, number in index.left_out.items() if number} == {
        "no caption": 1,
        "caption.words>=3": 1,
        "caption.characters<=30": 1,
        "width>=10": 1,
        "aspect<=3": 1,
        "json:similarity>=0.28": 1,
        "no json:similarity": 4,
        "no readable picture": 2,
    }
    assert index.num_samples + sum(index.left_out.values()) == len(members)


def test_of_several_captions_all_must_pass(tmp_path):
    members = [("0.json", b'{"c": ["a b c", "a b"]}'), ("1.json", b'{"c": ["a b c", "d e f"]}')]
    write_tar(tmp_path / "s" / "0.tar", members)
    assert keys(filtered(tmp_path, ["caption.words>=3"], caption_key="txt;json:c")) == ["1"]


def test_the_size_of_a_picture_is_read_from_its_header(tmp_path):
    exif = Image.Exif()
    exif[270] = "x" * 20_000
    pictures = {
        "long.jpg": picture(30, 40, "jpeg", exif=exif),
        "short.jpg": picture(30, 40, "jpeg")[:-4],  # cannot be decoded in full
        "web.webp": picture(30, 40, "webp"),
        "small.jpg": picture(20, 40, "jpeg"),
        "gif.gif": picture(30, 40, "gif"),
    }
    write_tar(tmp_path / "s" / "0.tar", list(pictures.items()))
    index = filtered(tmp_path, ["width>=30", "height==40"], image_key="jpg;webp")
    assert keys(index) == ["long", "short", "web"]
    assert index.left_out == {"no readable picture": 1, "width>=30": 1, "height==40": 0}


def test_lists_of_keys(tmp_path):
    write_shards(tmp_path / "s", [3, 3])
    (tmp_path / "these").write_text("000001\n000002\n000004\n")
    (tmp_path / "not").write_text("00001.tar/000004\n00000.tar/000005\n  000002  \n")
    index = filtered(tmp_path, keys=tmp_path / "these", without_keys=tmp_path / "not")
    assert keys(index) == ["000001"]
    assert index.left_out == {"not among the keys": 3, "among the keys left out": 2}
    for path in ("these", "not"):
        (tmp_path / path).unlink()
    write_shards(tmp_path / "s", [3, 3, 1], replaced={6: {"txt": b"x"}})
    again = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i")  # the index holds its own copy
    assert (keys(again), again.filter) == (["000001"], index.filter)
    next((tmp_path / "i").glob("clipx-keys-*")).unlink()
    with pytest.raises(InputError, match=r"clipx-filter.json is damaged \(its list .* is gone\); make the index again"):
        build_index([str(tmp_path / "s")], index_dir=tmp_path / "i")


def test_key_list_round_trip():
    keys = KeyList(np.unique(np.array([hashed(b"a"), hashed(b"b")], np.uint64)))
    read = KeyList.from_bytes(keys.to_bytes())
    assert (read.digest, read.holds(np.array([hashed(b"b"), hashed(b"c")], np.uint64)).tolist()) == (
        keys.digest,
        [True, False],
    )


def test_a_parquet_file_beside_the_shard(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_shards(tmp_path / "s", [4])
    columns = {"key": ["000002", "000000", "000003"], "similarity": [0.3, 0.2, None], "other": [1, 2, 3]}
    parquet.write_table(arrow.table(columns), tmp_path / "s" / "00000.parquet")
    index = filtered(tmp_path, ["parquet:similarity>=0.28"])
    assert keys(index) == ["000002"]
    assert index.left_out == {"no parquet:similarity": 2, "parquet:similarity>=0.28": 1}
    with pytest.raises(InputError, match=r"00000.parquet has no column 'similar'; it has key, similarity, other"):
        build_index(
            [str(tmp_path / "s")], index_dir=tmp_path / "j", filters=SampleFilter.parse(["parquet:similar>=0.28"])
        )
    (tmp_path / "s" / "00000.parquet").write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"00000.parquet is no parquet file .*; write it again"):
        build_index(
            [str(tmp_path / "s")], index_dir=tmp_path / "k", filters=SampleFilter.parse(["parquet:similarity>=0"])
        )
    (tmp_path / "s" / "00000.parquet").unlink()
    with pytest.raises(InputError, match=r"00000.parquet, which conditions on parquet: need, cannot be read"):
        build_index(
            [str(tmp_path / "s")], index_dir=tmp_path / "l", filters=SampleFilter.parse(["parquet:similarity>=0"])
        )


@pytest.mark.parametrize(
    ("unique", "left", "out"),
    [("image", ["0", "2"], 3), ("caption", ["0", "1", "4"], 2), ("pair", ["0", "1", "2", "4"], 1)],
)
def test_of_exact_duplicates_the_first_stays(tmp_path, unique, left, out, monkeypatch):
    rows = [("0", 8, "a"), ("1", 8, "b"), ("2", 9, "a"), ("3", 8, "a"), ("4", 9, "c")]
    for number, (key, width, caption) in enumerate(rows):
        write_tar(tmp_path / "s" / f"{number}.tar", sample(key, width, 8, caption))
    index = filtered(tmp_path, unique=unique)
    assert keys(index) == left
    assert index.left_out[f"duplicate {unique}"] == out
    assert list(index.left_out)[-1] == f"duplicate {unique}"
    monkeypatch.setattr(duplicates, "_AT_ONCE", 2)  # compared in several parts
    options = {"index_dir": tmp_path / "j", "filters": SampleFilter.parse([], unique=unique)}
    assert keys(build_index([str(tmp_path / "s")], **options)) == left


def test_duplicates_of_a_shard_that_changes_come_back(tmp_path):
    for name, caption in (("0", "a"), ("1", "a"), ("2", "b")):
        write_tar(tmp_path / "s" / f"{name}.tar", sample(name, caption=caption))
    first = filtered(tmp_path, unique="caption")
    assert keys(first) == ["0", "2"]
    write_tar(tmp_path / "s" / "0.tar", sample("0", caption="b and more"))
    write_tar(tmp_path / "s" / "3.tar", sample("3", caption="a"))
    again = build_index([str(tmp_path / "s")], index_dir=tmp_path / "i")
    assert keys(again) == ["0", "1", "2"]
    assert again.left_out["duplicate caption"] == 1
    loaded = load_index([str(tmp_path / "s")], index_dir=tmp_path / "i")
    assert (keys(loaded), loaded.left_out) == (keys(again), again.left_out)


def test_a_filtered_index_is_one_of_its_own(tmp_path):
    write_shards(tmp_path / "s", [3, 2])
    shards = [str(tmp_path / "s")]
    plain = build_index(shards)
    some, other = SampleFilter.parse(["caption.words>=2"]), SampleFilter.parse(["caption.words>=3"])
    index = build_index(shards, index_dir=tmp_path / "i", filters=some)
    assert (index.counts.tolist(), index.filter) == ([3, 2], some.text)
    assert index.fingerprint() != plain.fingerprint() == build_index(shards).fingerprint()
    for again in (build_index(shards, index_dir=tmp_path / "i"), load_index(shards, index_dir=tmp_path / "i")):
        assert (again.fingerprint(), again.filter, again.left_out) == (
            index.fingerprint(),
            index.filter,
            index.left_out,
        )
    write_shards(tmp_path / "t", [2], replaced={0: {"txt": b"short"}})
    more = build_index([*shards, str(tmp_path / "t")], index_dir=tmp_path / "i")
    assert (more.counts.tolist(), more.left_out["caption.words>=2"]) == ([3, 2, 1], 1)
    assert index.fingerprint() == load_index(shards, index_dir=tmp_path / "i").fingerprint()
    for options, message in (
        ({"filters": some}, r"needs a folder for its index \(--out"),
        ({"filters": some, "index_dir": tmp_path / "s"}, "needs a folder of its own for its index"),
        ({"filters": other, "index_dir": tmp_path / "i"}, "has the filter 'caption.words>=2.*', not 'caption.words>=3"),
    ):
        with pytest.raises(InputError, match=message):
            build_index(shards, **options)
    build_index(shards, index_dir=tmp_path / "plain")
    with pytest.raises(InputError, match=r"was made with no filter, not with the filter 'caption.words"):
        build_index(shards, index_dir=tmp_path / "plain", filters=some)
    assert not (tmp_path / "plain" / FILTER_FILE).exists()
    (tmp_path / "i" / FILTER_FILE).write_text("{}")
    with pytest.raises(InputError, match=r"clipx-filter.json is damaged .*; make the index again in a new folder"):
        build_index(shards, index_dir=tmp_path / "i")


@pytest.mark.parametrize("where", [["width>3"], []])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, where):
    shards = write_shards(tmp_path / "shards", [2])
    listed = tmp_path / "keys.txt"
    listed.write_text("000000\n")
    filters = SampleFilter.parse(where, keys=None if where else listed)
    with pytest.raises(InputError, match=r"the index in .*keys.txt/a cannot be written: .*; make room there or choose"):
        build_index(shards, index_dir=listed / "a", filters=filters)


def test_a_filter_that_nothing_passes_says_why(tmp_path):
    write_shards(tmp_path / "s", [3, 2])
    with pytest.raises(InputError, match=r"no sample of the 2 shards .* passes the filter \(caption.words>=9: 5\)"):
        filtered(tmp_path, ["caption.words>=9"])


def test_filtered_offsets_that_are_gone_are_made_by_the_index_alone(tmp_path):
    write_shards(tmp_path / "s", [3, 2])
    index = filtered(tmp_path, ["caption.words>=2"])
    plain = build_index([str(tmp_path / "s")])
    for spoil in (index.offsets_path(0).unlink, lambda: shutil.copy(plain.offsets_path(0), index.offsets_path(0))):
        spoil()
        with pytest.raises(RunError, match=r"00000.tar.clipx-index is gone, damaged or of another filter; delete it"):
            index.offsets(0)
    (tmp_path / "i" / index.offsets_path(0).parent.name / COUNTS_FILE).unlink()
    (tmp_path / "i" / FILTER_FILE).unlink()
    assert keys(filtered(tmp_path, ["caption.words>=2"], unique="caption")) == keys(plain)[:5]
    index.offsets_path(1).unlink()
    assert build_index([str(tmp_path / "s")], index_dir=tmp_path / "i").offsets(1).num_samples == 2


def test_filters_over_remote_shards_and_indexes(tmp_path):
    write_shards(tmp_path / "s", [3], replaced={1: {"txt": b"short"}})
    fsspec.filesystem("memory").pipe("/filtered/0.tar", (tmp_path / "s" / "00000.tar").read_bytes())
    shards, folder = ["memory:///filtered/0.tar"], "memory:///filter-index"
    index = build_index(shards, index_dir=folder, filters=SampleFilter.parse(["caption.words>=2"]))
    loaded = load_index(shards, index_dir=folder)
    assert keys(index) == keys(loaded) == ["000000", "000002"]


def test_filters_are_sent_to_processes(tmp_path):
    filters = SampleFilter.parse(["caption.words>=2"], unique="pair")
    assert filters.reasons
    assert pickle.loads(pickle.dumps(filters)).text == filters.text
