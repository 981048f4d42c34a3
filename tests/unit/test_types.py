from dataclasses import replace

import pytest
import torch
from batches import assert_same, join

from clipx.types import BadSample, Batch


def make_batch(lengths: list[int], *, captions_per_image: int = 1, groups: bool = False) -> Batch:
    number = len(lengths) // captions_per_image
    return Batch(
        index=0,
        images_IHWC=torch.arange(number * 12, dtype=torch.uint8).view(number, 2, 2, 3),
        tokens_T=torch.arange(sum(lengths)),
        lengths_B=torch.tensor(lengths),
        max_length=max(lengths),
        sample_id_I=torch.arange(number) + 100,
        slot_I=torch.arange(number),
        source_I=torch.zeros(number, dtype=torch.int64),
        captions_per_image=captions_per_image,
        group_id_B=torch.arange(len(lengths)) % 3 if groups else None,
        augment_seeds=tuple(range(50, 50 + number)),
        bad=(BadSample("train", "a.tar", "k", "broken", 7),),
        num_fallbacks=2,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9])
def test_micro_batches_put_together_are_the_batch(size: int) -> None:
    batch = make_batch([3, 2, 5, 2, 4, 7], groups=True)
    pieces = batch.micro_batches(size)
    assert [len(piece) for piece in pieces][:-1] == [size] * (len(pieces) - 1)
    assert all(int(piece.lengths_B.sum()) == len(piece.tokens_T) for piece in pieces)
    assert_same([replace(join(pieces), bad=batch.bad, num_fallbacks=2)], [batch])


def test_pictures_stay_with_all_their_captions() -> None:
    batch = make_batch([3, 2, 5, 2, 4, 7], captions_per_image=2)
    first, second = batch.micro_batches(4)
    assert (len(first), first.slot_I.tolist(), second.slot_I.tolist()) == (4, [0, 1], [2])
    assert first.lengths_B.tolist() == [3, 2, 5, 2]
    assert (first.augment_seeds, second.augment_seeds) == ((50, 51), (52,))
    assert batch.sample_of_pair().tolist() == [100, 100, 101, 101, 102, 102]


def test_counts_and_records_belong_to_the_batch_and_not_to_its_pieces() -> None:
    pieces = make_batch([3, 2, 5, 2]).micro_batches(2)
    assert sum(len(piece.bad) + piece.num_fallbacks for piece in pieces) == 0


def test_pairs_of_a_group_are_no_negatives_else_those_of_a_sample() -> None:
    assert make_batch([1] * 4, groups=True).no_negatives().tolist() == [0, 1, 2, 0]
    assert make_batch([1] * 4, captions_per_image=2).no_negatives().tolist() == [100, 100, 101, 101]
