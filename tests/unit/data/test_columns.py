"""Columns that an objective adds: they travel with their samples, and a reader that breaks its promise is named."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from shard_files import png, write_shards
from streams import LetterTokenizer, make_order

from clipx.config.data import DataConfig
from clipx.data.build import open_reader
from clipx.data.columns import ColumnSpec, Wanted, blank_columns
from clipx.data.decode import UndecodableError
from clipx.data.index.shard_index import build_index
from clipx.errors import RunError


class Numbers:
    """The number in a sample's `cls` member for its image, and the length of each caption."""

    columns = MappingProxyType(
        {"number_I2": ColumnSpec(np.dtype(np.int32), (2,)), "letters_B": ColumnSpec(np.dtype(np.float32))}
    )
    extensions = frozenset({"cls"})

    def read(self, sample):
        if "cls" not in sample.members:
            raise UndecodableError("no number")
        number = int(sample.members["cls"])
        assert sample.name().key == f"{number:06d}"
        return {
            "number_I2": np.array([[number, sample.ref.epoch]], dtype=np.int32),
            "letters_B": np.array([len(text) for text in sample.texts], dtype=np.float32),
        }


@pytest.fixture
def index(tmp_path):
    samples = {i: {"png": png(i), "txt": b"x" * (i + 1), "cls": b"%d" % i} for i in range(30)}
    without = {7: {"png": png(7), "txt": b"a"}}
    write_shards(tmp_path, [30], replaced=samples | without)
    return build_index([str(tmp_path)])


def read(index, *readers):
    data = DataConfig(train=["none.tar"], image_key="png", captions_per_image=2)
    reader = open_reader(
        [index], make_order(index), data=data, image_size=6, tokenizer=LetterTokenizer(), wanted=Wanted(columns=readers)
    )
    return [reader.read(t, range(12), out=torch.empty(12, 6, 6, 3, dtype=torch.uint8)) for t in range(6)]


def test_columns_belong_to_their_samples_and_a_sample_without_them_is_replaced(index):
    parts = read(index, Numbers())
    for part in parts:
        ids = part.columns["sample_id_I"]
        assert part.columns["number_I2"][:, 0].tolist() == ids.tolist()
        assert part.columns["letters_B"].tolist() == np.repeat(ids + 1.0, 2).tolist()
        assert 7 not in ids
    assert {bad.reason for part in parts for bad in part.bad} == {"no number"}
    assert {epoch for part in parts for epoch in part.columns["number_I2"][:, 1].tolist()} >= {0, 1, 2}


def test_a_reader_that_breaks_its_promise_is_named(index):
    class Broken(Numbers):
        def read(self, sample):
            if self.wrong is None:
                raise KeyError("score")
            return {**super().read(sample), **self.wrong}

    for wrong, message in (
        ({"more_I": np.zeros(1)}, r"gave \['letters_B', 'more_I', 'number_I2'\] and promised \['letters_B', 'number"),
        (
            {"number_I2": np.zeros((1, 3), np.int32)},
            r"number_I2 of a sample is int32 of shape \(1, 3\) and must be int32 of .*2\)",
        ),
        (
            {"number_I2": np.zeros((1, 2))},
            r"column number_I2 of a sample is float64 of shape \(1, 2\) and must be int32",
        ),
        (
            {"letters_B": np.zeros(1, np.float32)},
            r"letters_B of a sample is float32 of shape \(1,\) and must be float32 of shape \(2,\); mend Broken",
        ),
        ({"number_I2": np.int32(3)}, r"number_I2 of a sample is int32 of shape \(\) and must be"),
        (None, r"Broken failed at 0000\d\d of .*00000.tar \(KeyError\('score'\)\); mend it"),
    ):
        broken = Broken()
        broken.wrong = wrong
        with pytest.raises(RunError, match=message):
            read(index, broken)


@pytest.mark.parametrize("name", ["number", "sample_id_I", "letters_B"])
def test_a_name_that_cannot_be_is_an_error_before_anything_is_read(index, name):
    class Other:
        columns = MappingProxyType({name: ColumnSpec(np.dtype(np.int32))})
        extensions = frozenset()

    with pytest.raises(RunError, match=f"column {name}: a column's name must end in _I, _B or _T, and be no other"):
        read(index, Numbers(), Other())


def test_a_column_along_tokens_must_have_one_row_for_each(index):
    class Tokens:
        columns = MappingProxyType({"weight_T": ColumnSpec(np.dtype(np.float32))})
        extensions = frozenset()
        more = 0

        def read(self, sample):
            lengths = LetterTokenizer().encode(list(sample.texts))[1]
            return {"weight_T": np.ones(int(lengths.sum()) + self.more, np.float32)}

    tokens = Tokens()
    assert all(len(part.columns["weight_T"]) == len(part.columns["tokens_T"]) for part in read(index, tokens))
    tokens.more = 1
    with pytest.raises(RunError, match=r"column weight_T has \d+ rows, not \d+ \(tokens\); mend it"):
        read(index, tokens)


def test_blank_columns_have_the_shapes_of_real_ones():
    columns = blank_columns([Numbers()], {"I": 3, "B": 6, "T": 9})
    assert {name: (tuple(value.shape), value.dtype) for name, value in columns.items()} == {
        "number_I2": ((3, 2), torch.int32),
        "letters_B": ((6,), torch.float32),
    }
