"""Which images and texts of a batch are negatives of each other: never a sample's own, never equal texts."""

from dataclasses import replace

import pytest
import torch
from reference.info_nce import masks
from torch import Tensor

from clipx.objectives.contrastive import no_negatives, positives
from clipx.types import Batch


def batch(sample_id_I: list[int], texts_B: list[int] | None) -> Batch:
    """Of as many texts per image as there are."""
    images, texts = len(sample_id_I), len(sample_id_I) if texts_B is None else len(texts_B)
    return Batch(
        index=0,
        images_IHWC=torch.zeros(images, 1, 1, 3, dtype=torch.uint8),
        tokens_T=torch.zeros(texts, dtype=torch.int64),
        lengths_B=torch.ones(texts, dtype=torch.int64),
        max_length=1,
        sample_id_I=torch.tensor(sample_id_I),
        slot_I=torch.arange(images),
        source_I=torch.zeros(images, dtype=torch.int64),
        group_id_B=None if texts_B is None else torch.tensor(texts_B),
        captions_per_image=texts // images,
    )


def left_out(of: Batch) -> list[tuple[int, int]]:
    _, left_out_BB = masks(no_negatives(of), positives(of), len(of))
    return [(int(row), int(column)) for row, column in left_out_BB.nonzero()]


@pytest.mark.parametrize("texts_B", [None, [7, 8, 9, 6]])
def test_a_picture_that_stands_twice_is_not_its_own_negative_whatever_is_drawn(texts_B: list[int] | None) -> None:
    assert left_out(batch([0, 1, 0, 3], texts_B)) == [(0, 2), (2, 0)]


def test_equal_texts_are_no_negatives_of_each_other() -> None:
    assert left_out(batch([0, 1, 0, 3], [7, 8, 9, 8])) == [(0, 2), (1, 3), (2, 0), (3, 1)]


def test_a_text_is_no_negative_of_any_image_that_it_describes() -> None:
    """Images 0 and 1 share text 8: each is no negative of the other's, whichever row of the image is taken."""
    shared = batch([0, 1, 2], [7, 8, 8, 9, 5, 5])
    assert left_out(shared) == [(0, 2), (1, 2), (2, 1), (3, 1)]
    assert left_out(replace(shared, group_id_B=None)) == []


def test_numbers_of_texts_say_nothing_of_samples() -> None:
    ids: Tensor = no_negatives(batch([0, 1], [1, 0]))
    assert ids.tolist() == [[0, 1], [1, 0]]
    assert left_out(batch([0, 1], [1, 0])) == []
