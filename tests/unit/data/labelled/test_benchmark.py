import gzip
import io
import re
import tarfile

import numpy as np
import pytest
from shard_files import png, write_tar
from tiny_clip import encoded, picture, write_classification_set, write_retrieval_set

from clipx.data.labelled import MultiLabelSet, RetrievalSet, open_classification, open_set
from clipx.data.labelled.benchmark import benchmark_shards, dataset_type
from clipx.data.labelled.shards import read_captioned, read_labelled, read_multi_label
from clipx.errors import InputError

LABELS = [0, 1, 2, 1, 0]
NAMES = ["red fox", "cat", "dog"]


@pytest.fixture
def folder(tmp_path):
    return write_classification_set(tmp_path, LABELS, class_names=NAMES, templates=["a {c}", "{c}!"])


def test_a_classification_set_is_read_in_order(folder):
    data = open_classification(str(folder))
    assert (data.class_names, data.templates) == (tuple(NAMES), ("a {c}", "{c}!"))
    pictures = list(data.images())
    assert [item.label for item in pictures] == LABELS
    assert [item.data for item in pictures] == [encoded(picture(i)) for i in range(5)]
    assert "s0003" in pictures[3].name
    assert "1.tar" in pictures[3].name
    assert dataset_type(folder) == "classification"


def test_shards_are_read_by_number_and_not_by_name(tmp_path):
    for number in range(11):
        write_tar(tmp_path / "test" / f"{number}.tar", [("a.png", png(0)), ("a.cls", str(number).encode())])
    (tmp_path / "test" / "nshards.txt").write_text("11")
    assert [item.label for item in read_labelled(benchmark_shards(tmp_path)[1], num_classes=11)] == list(range(11))


def test_a_binary_dataset_type_is_named(folder):
    (folder / "dataset_type.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"dataset_type.txt is not UTF-8"):
        dataset_type(folder)


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"])
@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xff"])
def test_a_missing_empty_or_binary_file_is_named(folder, name, content):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=(folder / name).name):
        open_classification(str(folder))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zeroshot_classification_templates.txt", "a {c}\na photo", r"'a photo' lacks \{c\}"),
        ("test/nshards.txt", "3", "2.tar is missing"),
        ("test/nshards.txt", "1", "1.tar is not among them"),
        ("test/nshards.txt", "two", "'two'"),
        ("test/nshards.txt", "0", "'0'"),
        ("dataset_type.txt", "detection", "'detection'"),
        ("dataset_type.txt", "multilabel", "is a multilabel set"),
        ("dataset_type.txt", "retrieval", "is a retrieval set"),
    ],
)
def test_a_file_that_says_something_wrong_is_named(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=message) as raised:
        open_classification(str(folder))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_absent_or_for_retrieval_is_not_opened(tmp_path):
    with pytest.raises(InputError, match="absent: no such folder"):
        open_classification(str(tmp_path / "absent"))
    with pytest.raises(InputError, match="is a retrieval set"):
        open_classification(str(write_retrieval_set(tmp_path, [["one"]])))


@pytest.mark.parametrize("label", [b"3", b"-1", b"cat", b"", b"1.0", "²".encode()])
def test_a_class_out_of_range_names_the_sample(tmp_path, label):
    shard = write_tar(tmp_path / "0.tar", [("one.png", png(0)), ("one.cls", label)])
    with pytest.raises(InputError, match=r"sample one of .*0 to 2"):
        list(read_labelled([str(shard)], num_classes=3))


@pytest.mark.parametrize("members", [[("one.cls", b"1")], [("one.png", b"p")]])
def test_a_missing_member_names_the_sample(tmp_path, members):
    shard = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=r"sample one of .* has no"):
        list(read_labelled([str(shard)], num_classes=3))


def test_truncated_absent_and_empty_shards_are_bad_input(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", [("a.png", bytes(5000)), ("a.cls", b"1")])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:3000])
    empty = write_tar(tmp_path / "empty.tar", [])
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "text.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole.read_bytes()).ljust(600, b"\0"))
    for shard, message in (
        (cut, r"cut.tar ends inside a member"),
        (tmp_path / "none.tar", "none.tar cannot be read"),
        (tmp_path / "folder.tar", "folder.tar cannot be read"),
        (tmp_path / "text.tar", "text.tar is no tar file; write or fetch it again"),
        (tmp_path / "packed.tar", "packed.tar is compressed; write or fetch it again"),
        (empty, "no samples"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            list(read_labelled([str(shard)], num_classes=3))
        assert "\n" not in str(raised.value)


def test_a_shard_that_is_cut_anywhere_gives_all_samples_or_none(tmp_path):
    members = [(f"{i}.{extension}", b"1" * 700) for i in range(4) for extension in ("png", "txt")]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    cut = tmp_path / "cut.tar"
    end = len(members) * 3 * 512  # of the last member: a header and two blocks each
    for length in range(0, len(whole) + 1, 512):
        cut.write_bytes(whole[:length])
        found = read_captioned([str(cut)], image_key="png", caption_key="txt")
        if length > end:  # the end mark is there
            assert len(list(found)) == 4
        else:
            with pytest.raises(InputError, match=r"shard .*cut.tar (ends|has no bytes)"):
                next(found)


def test_a_member_that_is_there_twice_names_shard_and_sample(tmp_path):
    shard = write_tar(tmp_path / "0.tar", [("one.png", b"p"), ("one.cls", b"1"), ("one.cls", b"2")])
    with pytest.raises(InputError, match=r"0.tar has a member twice in sample one"):
        list(read_labelled([str(shard)], num_classes=3))


def test_a_bom_is_no_part_of_numbers_and_kinds(tmp_path):
    folder = write_classification_set(tmp_path, [0, 1], class_names=NAMES)
    write_tar(folder / "test" / "0.tar", [("a.png", png(0)), ("a.cls", "\ufeff2\n".encode())])
    (folder / "test" / "nshards.txt").write_bytes("\ufeff2\r\n".encode())
    (folder / "dataset_type.txt").write_bytes("\ufeffClassification\r\n".encode())
    assert [item.label for item in open_classification(str(folder)).images()] == [2, 1]


def test_captions_that_show_nothing_are_none_unless_every_line_is_asked_for(tmp_path):
    lines = "\ufeff one\n\n&nbsp;\ntwo \n\u200b"
    shard = write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.txt", lines.encode())])
    (item,) = read_captioned([str(shard)], image_key="png", caption_key="txt")
    assert item.captions == ("one", "two")
    (item,) = read_captioned([str(shard)], image_key="png", caption_key="txt", every_line=True)
    assert item.captions == (" one", "", "&nbsp;", "two ", "\u200b")
    empty = write_tar(tmp_path / "1.tar", [("b.png", png(0)), ("b.txt", "\ufeff\n&nbsp;".encode())])
    with pytest.raises(InputError, match=r"sample b of .*'txt' is empty"):
        list(read_captioned([str(empty)], image_key="png", caption_key="txt"))
    broken = write_tar(tmp_path / "2.tar", [("c.png", png(0)), ("c.txt", b"\xff")])
    with pytest.raises(InputError, match=r"sample c of .*UTF-8"):
        list(read_captioned([str(broken)], image_key="png", caption_key="txt", every_line=True))


def test_every_line_and_every_item_of_a_list_is_a_caption(tmp_path):
    folder = write_retrieval_set(tmp_path, [["one", "two"], ["three"]])
    assert dataset_type(folder) == "retrieval"
    _, shards = benchmark_shards(folder)
    found = [item.captions for item in read_captioned(shards, image_key="jpg;png", caption_key="txt")]
    assert found == [("one", "two"), ("three",)]
    listed = write_tar(tmp_path / "l.tar", [("a.png", png(0)), ("a.json", b'{"captions": ["x", "", "y"]}')])
    (item,) = read_captioned([str(listed)], image_key="png", caption_key="json:captions")
    assert item.captions == ("x", "y")
    with pytest.raises(InputError, match="sample a of"):
        list(read_captioned([str(listed)], image_key="png", caption_key="txt"))


def labels(folder):
    data = open_classification(str(folder))
    return [item.label for item in data.images()]


def test_hidden_files_of_a_copy_are_no_shards_and_no_samples(folder):
    """macOS puts ._NAME beside each file, on disks and in tars."""
    (folder / "test" / "._0.tar").write_bytes(b"Mac OS X")
    assert labels(folder) == LABELS
    write_tar(
        folder / "test" / "0.tar",
        [("d/._a.png", b"Mac OS X"), ("d/a.png", png(0)), ("d/._a.cls", b"Mac OS X"), ("d/a.cls", b"1"), ("._d", b"x")],
    )
    assert labels(folder)[0] == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "b.png", "a.cls", "b.cls"], "4 pieces of samples.*tar --sort=name"),
        (["a.png", "a.cls", "l.png", "l.cls"], "2 hard links, which are no files.*--hard-dereference"),
    ],
)
def test_shards_that_lose_samples_are_refused(folder, names, message):
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.LNKTYPE, "a") if name[0] == "l" else (tarfile.REGTYPE, "")
            tar.addfile(info)
    with pytest.raises(InputError, match=message):
        labels(folder)


def test_joined_and_giant_shards_are_refused(folder, monkeypatch):
    path = folder / "test" / "0.tar"
    content = path.read_bytes()
    path.write_bytes(content * 2)
    with pytest.raises(InputError, match="holds another tar behind its end mark"):
        labels(folder)
    path.write_bytes(content)
    monkeypatch.setattr("clipx.storage.tar.MAX_SAMPLE_BYTES", 10)
    with pytest.raises(InputError, match=r"its members have .* bytes; a sample has at most 10"):
        labels(folder)


@pytest.mark.parametrize("number", ["9" * 5000, "99999999999"])
def test_a_number_of_shards_that_is_none(folder, number):
    (folder / "test" / "nshards.txt").write_text(number)
    with pytest.raises(InputError, match="it must hold the number of shards"):
        labels(folder)


def test_parts_are_found_by_what_they_are_called(folder):
    for number in (10, 9):
        write_tar(folder / "train" / f"{number}.tar", [("a.png", png(0)), ("a.cls", str(number % 9).encode())])
    train = open_classification(str(folder), split="train")
    assert ([item.label for item in train.images()], train.split, train.name) == (
        [0, 1],
        "train",
        f"{folder.name} (train)",
    )
    test = open_classification(str(folder))
    assert (test.split, test.name) == ("test", folder.name)
    with pytest.raises(InputError, match=r"has no split 'val': it has test, train; name one of them"):
        open_set(str(folder), split="val")


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("vla", "did you mean 'valid'?"),  # what val is called here
        ("validaton", "did you mean 'valid'?"),
        ("TESTS", "did you mean 'test'?"),
        ("part-0", "did you mean 'Part-1'?"),
        ("zzz", "name one of them"),
    ],
)
def test_a_split_that_is_not_there_is_told_with_the_nearest(folder, wanted, hint):
    for name in ("valid", "Part-1"):
        write_tar(folder / name / "0.tar", [("a.png", png(0)), ("a.cls", b"0")])
    with pytest.raises(InputError) as refused:
        open_set(str(folder), split=wanted)
    assert str(refused.value) == f"{folder} has no split {wanted!r}: it has Part-1, test, valid; {hint}"


def test_a_set_without_a_test_part_is_read_from_the_one_for_validation(folder):
    (folder / "test").rename(folder / "validation")
    data = open_classification(str(folder))
    assert ([item.label for item in data.images()], data.name) == (LABELS, f"{folder.name} (validation)")
    assert open_set(str(folder), split="val").split == "validation"


def test_shards_beside_a_list_of_classes_are_one_whole_set(tmp_path):
    write_tar(tmp_path / "00000.tar", [("a.png", png(0)), ("a.cls", b"1")])
    with pytest.raises(InputError, match=r"classnames.txt is missing"):
        open_set(str(tmp_path))
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    data = open_classification(str(tmp_path))
    assert [item.label for item in data.images()] == [1]
    assert (data.name, data.split, data.templates) == (f"{tmp_path.name} (whole set)", None, ("a photo of a {c}.",))
    with pytest.raises(InputError, match=r"has no split 'train': it has no parts"):
        open_set(str(tmp_path), split="train")


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("member", "content", "labels"),
    [
        ("cls", b"2 0", (0, 2)),
        ("cls", b"2,0\n2", (0, 2)),
        ("cls", b" [1, 2]\n", (1, 2)),
        ("cls", b"", ()),
        ("cls", b"[]", ()),
        ("npy", npy([0, 1, 1]), (1, 2)),
        ("npy", npy(np.array([True, False, False])), (0,)),
    ],
)
def test_a_picture_has_any_number_of_classes(folder, member, content, labels):
    (folder / "dataset_type.txt").write_text("multilabel")
    for number in range(2):
        write_tar(folder / "test" / f"{number}.tar", [("a.png", png(0)), (f"a.{member}", content)])
    data = open_set(str(folder))
    assert isinstance(data, MultiLabelSet)
    assert data.class_names == tuple(NAMES)
    assert [item.labels for item in data.images()] == [labels, labels]


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("cls", b"0 3", "cls holds '3'"),
        ("cls", b"[true]", "cls holds 'True'"),
        ("cls", b"[0", "no JSON list"),
        ("cls", b"cat", "cls holds 'cat'"),
        ("npy", npy([0, 1]), r"shape \(2,\).* 3 classes"),
        ("npy", npy(["a", "b", "c"]), "must hold a number"),
        ("npy", npy([None, 1, 1]), "cannot be read"),
        ("npy", b"none", "cannot be read"),
        ("txt", b"0", "has no cls"),
    ],
)
def test_classes_that_are_none_name_the_sample(tmp_path, member, content, message):
    shard = write_tar(tmp_path / "0.tar", [("one.png", png(0)), (f"one.{member}", content)])
    with pytest.raises(InputError, match=rf"sample one of .*{message}") as raised:
        list(read_multi_label([str(shard)], num_classes=3))
    assert "\n" not in str(raised.value)


def test_the_identity_of_a_set_follows_its_pictures_and_labels(folder):
    def identity(**options):
        return open_set(str(folder), **options).identity()

    before = identity()
    assert re.fullmatch(r"[0-9a-f]{32}", before)
    (folder / "zeroshot_classification_templates.txt").write_text("{c}")
    assert identity() == before
    (folder / "dataset_type.txt").write_text("retrieval")
    lines, every_line = identity(), identity(every_line=True)
    assert isinstance(open_set(str(folder)), RetrievalSet)
    (folder / "dataset_type.txt").unlink()
    write_tar(folder / "test" / "0.tar", [("one.png", png(0)), ("one.cls", b"1")])
    assert len({before, lines, every_line, identity()}) == 4
