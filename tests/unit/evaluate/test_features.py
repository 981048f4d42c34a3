"""Features are those of the model, are computed once, and nothing that is damaged is taken for them."""

import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_clip import encoded, picture, tiny_pretrained, write_classification_set, write_retrieval_set

from clipx.data.decode import decode_image
from clipx.data.labelled import MultiLabelImage, open_set
from clipx.errors import InputError
from clipx.evaluate import feature_cache
from clipx.evaluate.feature_cache import read_entry, write_entry
from clipx.evaluate.features import image_features
from clipx.evaluate.mapped_rows import RowSpool, TextList, read_rows, take_rows
from clipx.evaluate.options import EvaluateOptions
from clipx.evaluate.run import evaluate_set

LABELS = [0, 2, 1, 2, 0, 1, 1]
CAPTIONS = [["one", "two"], ["ein Bild"], ["ONE", "drei", "vier"], ["fünf"]]


class Counted:
    """A model that counts how many pictures it embeds."""

    def __init__(self, seed=0):
        self.model = tiny_pretrained(seed=seed)
        self.images = 0
        encode = self.model.encode_image

        def counted(images):
            self.images += len(images)
            return encode(images)

        self.model.encode_image = counted


def features_of(pretrained, data, cache, **options):
    return image_features(pretrained, data, **{"batch_size": 3, "group": None, "cache": cache} | options)


@pytest.fixture
def data(tmp_path):
    folder = write_classification_set(tmp_path / "set", LABELS, class_names=["a", "b", "c"])
    return open_set(str(folder))


def test_features_are_the_model_s_and_the_set_s(tmp_path, data):
    counted = Counted()
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        features = features_of(counted.model, data, cache)
        alone = torch.cat([counted.model.encode_image([decode_image(encoded(picture(i)))]) for i in range(7)])
        np.testing.assert_allclose(features.image_ND, alone.numpy(), atol=1e-6)
        assert features.label_N.tolist() == LABELS
        assert len(features) == len(features.names) == 7
        assert "s0003" in features.names[3]


def test_they_are_computed_once_for_a_model_a_set_and_a_transform(tmp_path, data):
    counted, cache = Counted(), tmp_path / "cache"
    first = features_of(counted.model, data, cache)
    again = features_of(counted.model, data, cache, batch_size=2)
    assert counted.images == 7
    assert again.image_ND.tobytes() == first.image_ND.tobytes()
    assert list(again.names) == list(first.names)
    features_of(counted.model, data, cache, decode="fast")
    assert counted.images == 14
    other = Counted(seed=1)
    assert features_of(other.model, data, cache).image_ND.tobytes() != first.image_ND.tobytes()
    assert other.images == 7
    os.utime(data.source.shards[0], ns=(5, 5))
    features_of(counted.model, data, cache)
    assert counted.images == 21


@pytest.mark.parametrize("damage", ["a bit", "cut", "no manifest", "a list", "other manifest", "gone", "not written"])
def test_a_damaged_or_partial_entry_is_computed_anew(tmp_path, data, damage):
    counted, cache = Counted(), tmp_path / "cache"
    right = features_of(counted.model, data, cache).image_ND.tobytes()
    entry = next(path for path in cache.iterdir() if path.is_dir())
    array, manifest = entry / "image.npy", entry / "entry.json"
    match damage:
        case "a bit":
            content = bytearray(array.read_bytes())
            content[-5] ^= 1
            array.write_bytes(content)
        case "cut":
            array.write_bytes(array.read_bytes()[:-4])
        case "no manifest":
            manifest.unlink()
        case "a list":
            manifest.write_text("[]")
        case "other manifest":
            manifest.write_text(json.dumps({"format": 2, "arrays": {}}))
        case "gone":
            array.unlink()
        case "not written":
            entry.rename(cache / f".{entry.name}.unfinished")
            (cache / f".{entry.name}.unfinished" / ".clipx-unfinished").touch()
    assert features_of(counted.model, data, cache).image_ND.tobytes() == right
    assert counted.images == 14
    features_of(counted.model, data, cache)
    assert counted.images == 14, "the damaged entry was not replaced"


def test_a_cache_that_cannot_be_written_is_logged_and_no_loss(tmp_path, data, caplog):
    (tmp_path / "file").write_text("no folder")
    features = features_of(Counted().model, data, tmp_path / "file")
    assert features.label_N.tolist() == LABELS
    assert "are not kept" in caplog.text


def test_the_entries_used_longest_ago_make_room(tmp_path, monkeypatch):
    row = np.zeros(1000, np.float32)
    for number in range(4):
        write_entry(tmp_path / f"e{number}", {"x": row})
        os.utime(tmp_path / f"e{number}" / "entry.json", (number, number))
    assert read_entry(tmp_path / "e0") is not None  # which makes it the last to go
    monkeypatch.setattr(feature_cache, "_IN_USE_S", -1.0)
    write_entry(tmp_path / "e4", {"x": row}, max_bytes=3 * 4500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e0", "e3", "e4"]


def test_what_is_in_use_does_not_make_room(tmp_path):
    row = np.zeros(1000, np.float32)
    for number in range(3):
        write_entry(tmp_path / f"e{number}", {"x": row}, max_bytes=5000)
    assert len(list(tmp_path.iterdir())) == 3


def test_captions_of_a_set_are_kept_with_their_images(tmp_path):
    folder = write_retrieval_set(tmp_path / "set", CAPTIONS)
    for _ in range(2):
        features = features_of(tiny_pretrained(), open_set(str(folder)), tmp_path / "cache")
        assert list(features.captions) == [line for lines in CAPTIONS for line in lines]
        assert features.image_P.tolist() == [0, 0, 1, 2, 2, 2, 3]
        assert features.first_like_N.tolist() == [0, 1, 2, 3]


@dataclass
class Labels:
    class_names = ("a", "b", "c")
    labels: tuple[tuple[int, ...], ...]

    def identity(self):
        return str(self.labels)

    def images(self):
        for i, labels in enumerate(self.labels):
            yield MultiLabelImage(name=str(i), data=encoded(picture(i)), labels=labels)


def test_labels_of_a_multi_label_set_are_rows_of_a_matrix(tmp_path):
    data = Labels(((), (0, 2), (1,)))
    for _ in range(2):
        features = features_of(tiny_pretrained(), data, tmp_path)
        assert features.labels_NC.tolist() == [[False] * 3, [True, False, True], [False, True, False]]


def test_a_second_evaluation_reads_no_picture_and_no_text(tmp_path):
    folder = write_retrieval_set(tmp_path / "set", CAPTIONS)
    options = EvaluateOptions(batch_size=3, cache=tmp_path / "cache")
    pretrained = tiny_pretrained()
    first = evaluate_set(pretrained, open_set(str(folder)), options, None)
    pretrained.encode_image = pretrained.encode_text = pretrained.tokenize = None
    again = evaluate_set(pretrained, open_set(str(folder)), options, None)
    assert (
        again.metrics
        == first.metrics
        == evaluate_set(tiny_pretrained(), open_set(str(folder)), EvaluateOptions(), None).metrics
    )


@pytest.mark.parametrize("in_memory", [10**6, 100, 0])
def test_rows_in_memory_and_in_a_file_are_the_same(in_memory):
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    spool = RowSpool(3, in_memory=in_memory)
    for start in range(0, 20, 7):
        spool.append(rows[start : start + 7])
    kept = spool.rows()
    assert isinstance(kept, np.memmap) == (in_memory < 240)
    assert kept.tolist() == rows.tolist()
    assert read_rows(kept, 5, 9).tolist() == rows[5:9].tolist()
    assert take_rows(kept, np.array([7, 0, 7])).tolist() == rows[[7, 0, 7]].tolist()
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path, data, monkeypatch):
    def full(self, rows_ND):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RowSpool, "append", full)
    with pytest.raises(InputError, match=r"no room .No space left on device.; name a folder with room in TMPDIR"):
        features_of(tiny_pretrained(), data, None)


def test_texts_of_any_letters_come_back():
    texts = ["", "a\nb", "Ünïcödé 🦊", "", "\ud83d", "end"]
    kept = TextList.of(texts)
    assert list(kept) == texts
    assert kept[-1] == "end"
    assert kept[1:4] == texts[1:4]
    assert (len(kept), len(TextList.of([]))) == (6, 0)
    with pytest.raises(IndexError):
        kept[6]


def resident_file_bytes():
    """What of mapped files the kernel counts as this process's memory."""
    for line in open("/proc/self/status", encoding="ascii"):  # noqa: SIM115
        if line.startswith("RssFile:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssFile")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
def test_a_pass_over_a_file_keeps_none_of_it_in_memory():
    spool = RowSpool(256, in_memory=0)
    for _ in range(32):
        spool.append(np.ones((1024, 256), np.float32))  # 32 MB in all
    rows, before = spool.rows(), resident_file_bytes()
    for start in range(0, len(rows), 1024):
        read_rows(rows, start, start + 1024)
        take_rows(rows, np.arange(start, start + 1024, 7))
        assert resident_file_bytes() - before < 2**23
    assert float(np.asarray(rows).sum()) == 32 * 1024 * 256
    assert resident_file_bytes() - before > 2**24, "the test would not see it"
