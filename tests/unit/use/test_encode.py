from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from embedding_folders import BLANK, BROKEN, CUT, write_pairs
from shard_files import png
from tiny_clip import tiny_pretrained

from clipx.data.inputs import Inputs, open_inputs
from clipx.errors import InputError
from clipx.pretrained import Pretrained
from clipx.use.encode import Encoded, encode


@pytest.fixture(scope="module")
def pretrained() -> Pretrained:
    return tiny_pretrained()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return open_inputs(write_pairs(tmp_path_factory.mktemp("pairs")))


def blocks(size: int, total: int = 32) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def test_each_row_has_the_embeddings_of_its_picture_and_its_text(pretrained: Pretrained, pairs: Inputs) -> None:
    for block in encode(pretrained, pairs, blocks(12)):
        assert block.image_BD is not None
        assert block.text_BD is not None
        for place, item in enumerate(block.items):
            read = pairs.read(item.row)
            assert (read.key, read.name) == (item.key, item.name)
            assert read.image is not None
            image_1D = pretrained.encode_image(pretrained.pixels(read.image)[None])
            torch.testing.assert_close(block.image_BD[place], image_1D[0])
            if item.row != BLANK:
                assert item.caption == f"picture {item.row}"
                torch.testing.assert_close(block.text_BD[place], pretrained.encode_text(item.caption)[0])


def test_rows_that_are_no_good_are_left_out_with_a_reason(pretrained: Pretrained, pairs: Inputs) -> None:
    encoded = list(encode(pretrained, pairs, blocks(10)))
    assert [(row.row, row.reason) for block in encoded for row in block.left_out] == [
        (BROKEN, "unreadable picture"),
        (CUT, "unreadable picture"),
    ]
    assert [item.row for block in encoded for item in block.items] == [i for i in range(32) if i not in (BROKEN, CUT)]
    assert [block.rows for block in encoded] == list(blocks(10))
    without_text = [item for block in encoded for item in block.items if item.caption is None]
    assert [item.row for item in without_text] == [BLANK]
    block = encoded[1]
    assert block.text_BD is not None
    assert block.has_text_B.tolist() == [i != BLANK for i in range(10, 20)]
    assert not block.text_BD[BLANK - 10].any()


def bits(encoded: Iterator[Encoded]) -> list[bytes]:
    return [x_BD.numpy().tobytes() for block in encoded for x_BD in (block.image_BD, block.text_BD) if x_BD is not None]


def test_bits_depend_neither_on_workers_nor_threads_nor_other_blocks(pretrained: Pretrained, pairs: Inputs) -> None:
    expected = bits(encode(pretrained, pairs, blocks(8)))
    assert bits(encode(pretrained, pairs, blocks(8), workers=2)) == expected
    assert bits(encode(pretrained, pairs, [range(16, 24)])) == expected[4:6]
    torch.set_num_threads(2)
    try:
        assert bits(encode(pretrained, pairs, blocks(8))) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_each_operation_has_one_thread_whatever_the_caller_has(
    pretrained: Pretrained, pairs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings of a model as small as this one would be the same with more threads; those of a larger one are not."""
    threads: list[int] = []
    encode_image = pretrained.encode_image

    def counted(images: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        return encode_image(images)

    monkeypatch.setattr(pretrained, "encode_image", counted)
    torch.set_num_threads(2)
    try:
        for _ in encode(pretrained, pairs, blocks(8)):
            threads.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(1)
    assert threads == [1] * 8


def test_texts_alone_and_pictures_alone(pretrained: Pretrained, pairs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a cat\n\na dog\n")
    (texts,) = encode(pretrained, open_inputs([str(tmp_path / "lines.txt")]), [range(3)])
    assert texts.image_BD is None
    assert texts.text_BD is not None
    torch.testing.assert_close(texts.text_BD, pretrained.encode_text(["a cat", "a dog"]))
    assert [row.reason for row in texts.left_out] == ["no caption"]
    (pictures,) = encode(pretrained, pairs, [range(4)], texts=False)
    assert pictures.text_BD is None
    assert [item.caption for item in pictures.items] == [None] * 4
    (nothing,) = encode(pretrained, open_inputs([str(tmp_path / "lines.txt")]), [range(1, 2)])
    assert (nothing.items, nothing.image_BD, nothing.text_BD) == ([], None, None)


def test_a_storage_that_fails_is_an_error_and_no_row_that_is_left_out(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))

    class Broken(Inputs):
        def read(self, number: int) -> None:  # type: ignore[override]
            raise InputError("https://example.org/a.png cannot be read")

    broken = open_inputs([str(tmp_path / "a.png")])
    broken.__class__ = Broken
    with pytest.raises(InputError, match="cannot be read"):
        list(encode(pretrained, broken, [range(1)]))


def test_a_model_in_training_stays_in_training(pairs: Inputs) -> None:
    pretrained = tiny_pretrained()
    expected = bits(encode(pretrained, pairs, blocks(8)))
    pretrained.model.train()
    assert bits(encode(pretrained, pairs, blocks(8))) == expected
    assert all(module.training for module in pretrained.model.modules())
