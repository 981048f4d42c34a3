from dataclasses import replace

import pytest
import torch
from batches import assert_same, join

from clipx.types import BadSample, Batch, Embeddings, axis_of, cut, tensors_of
from clipx.types import join as join_tensors


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
        augment_seed_I=torch.arange(50, 50 + number),
        bad=(BadSample("train", "a.tar", "k", "broken", 7),),
        counts={"pillow_images": 2},
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9])
def test_micro_batches_put_together_are_the_batch(size: int) -> None:
    batch = make_batch([3, 2, 5, 2, 4, 7], groups=True)
    pieces = batch.micro_batches(size)
    assert [len(piece) for piece in pieces][:-1] == [size] * (len(pieces) - 1)
    assert all(int(piece.lengths_B.sum()) == len(piece.tokens_T) for piece in pieces)
    assert_same([replace(join(pieces), bad=batch.bad, counts={"pillow_images": 2})], [batch])


def test_pictures_stay_with_all_their_captions() -> None:
    batch = make_batch([3, 2, 5, 2, 4, 7], captions_per_image=2)
    first, second = batch.micro_batches(4)
    assert (len(first), first.slot_I.tolist(), second.slot_I.tolist()) == (4, [0, 1], [2])
    assert first.lengths_B.tolist() == [3, 2, 5, 2]
    assert [piece.augment_seed_I.tolist() for piece in (first, second) if piece.augment_seed_I is not None] == [
        [50, 51],
        [52],
    ]


def test_counts_and_records_belong_to_the_batch_and_not_to_its_pieces() -> None:
    pieces = make_batch([3, 2, 5, 2]).micro_batches(2)
    assert [(piece.bad, piece.counts) for piece in pieces] == [((), {}), ((), {})]


def test_columns_are_cut_moved_and_joined_like_every_other_tensor() -> None:
    columns = {
        "depth_IHW": torch.arange(12).view(3, 2, 2),
        "score_B": torch.arange(6.0),
        "mask_T": torch.arange(23) % 2 == 0,
        "teacher_BD": torch.arange(18.0).view(6, 3),
    }
    batch = replace(make_batch([3, 2, 5, 2, 4, 7], captions_per_image=2), columns=columns)
    pieces = batch.micro_batches(2)
    assert [piece.columns["depth_IHW"].tolist() for piece in pieces] == [
        [rows] for rows in columns["depth_IHW"].tolist()
    ]
    assert [len(piece.columns["mask_T"]) for piece in pieces] == [5, 7, 11]
    whole = replace(join(pieces), bad=batch.bad, counts=batch.counts)
    assert_same([whole], [batch])
    moved = batch.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert moved.columns["teacher_BD"].shape == (6, 3)


def test_columns_are_left_out_by_name() -> None:
    batch = replace(make_batch([3, 2]), columns={"kept_B": torch.zeros(2), "gone_BD": torch.zeros(2, 4)})
    assert batch.without_columns({"gone_BD", "never_there_B"}).columns.keys() == {"kept_B"}
    assert batch.columns.keys() == {"kept_B", "gone_BD"}


def test_an_axis_is_the_first_letter_after_the_last_underscore() -> None:
    names = ("image_BD", "images_IHWC", "mask_T", "logit_scale", "logit_bias", "x_QD", "B", "_B")
    assert [axis_of(name) for name in names] == ["B", "I", "T", None, None, None, "B", "B"]


def test_outputs_are_joined_and_cut_by_their_names() -> None:
    scale = torch.tensor([9.0])
    pieces = [
        Embeddings(image_BD=torch.full((size, 2), float(size)), text_BD=torch.zeros(size, 2), logit_scale=scale)
        for size in (2, 1)
    ]
    joined = join_tensors([tensors_of(piece) for piece in pieces])
    assert joined["image_BD"].tolist() == [[2, 2], [2, 2], [1, 1]]
    assert joined["logit_scale"] is scale
    first, second = cut(joined, [{"B": 2, "I": 2, "T": 7}, {"B": 1, "I": 1, "T": 3}])
    assert first.keys() == second.keys() == {"image_BD", "text_BD", "logit_scale"}
    assert (first["image_BD"].tolist(), second["image_BD"].tolist()) == ([[2, 2], [2, 2]], [[1, 1]])
    assert second["logit_scale"] is scale
