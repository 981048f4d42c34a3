import pytest
import torch

from clipx.types import BadSample, Batch


def make_batch(lengths: list[int], *, index: int = 0) -> Batch:
    number = len(lengths)
    return Batch(
        index=index,
        images_BHWC=torch.arange(number * 12, dtype=torch.uint8).view(number, 2, 2, 3),
        tokens_T=torch.arange(sum(lengths)),
        lengths_B=torch.tensor(lengths),
        max_length=max(lengths),
        sample_id_B=torch.arange(number) + 100,
        slot_B=torch.arange(number),
        source_B=torch.zeros(number, dtype=torch.int64),
        bad=(BadSample("a.tar", "k", "broken", 7),),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9])
def test_micro_batches_put_together_are_the_batch(size: int) -> None:
    batch = make_batch([3, 2, 5, 2, 4, 7])
    pieces = batch.micro_batches(size)
    assert [len(piece) for piece in pieces][:-1] == [size] * (len(pieces) - 1)
    assert all(int(piece.lengths_B.sum()) == len(piece.tokens_T) for piece in pieces)
    joined = Batch.concatenate(pieces)
    for name in ("images_BHWC", "tokens_T", "lengths_B", "sample_id_B", "slot_B", "source_B"):
        assert torch.equal(getattr(joined, name), getattr(batch, name)), name


def test_micro_batches_do_not_repeat_records_of_bad_samples() -> None:
    pieces = make_batch([3, 2, 5, 2]).micro_batches(2)
    assert sum(len(piece.bad) for piece in pieces) == 0


def test_concatenate_keeps_records_and_the_longest() -> None:
    joined = Batch.concatenate([make_batch([3, 2]), make_batch([9, 1])])
    assert joined.max_length == 9
    assert len(joined.bad) == 2


def test_parts_of_different_batches_are_our_bug() -> None:
    with pytest.raises(AssertionError, match="different batches"):
        Batch.concatenate([make_batch([1], index=0), make_batch([1], index=1)])
