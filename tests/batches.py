"""Batches put together and compared."""

import posixpath
from collections.abc import Sequence
from dataclasses import replace

import torch

from clipx.types import Batch


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of the parts in their order: what the ranks' batches or the micro-batches of one are together."""
    first = parts[0]
    assert {part.index for part in parts} == {first.index}
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in first._tensors()}
    return replace(
        first,
        **tensors,
        max_length=max(part.max_length for part in parts),
        augment_seeds=tuple(seed for part in parts for seed in part.augment_seeds),
        bad=tuple(record for part in parts for record in part.bad),
        num_fallbacks=sum(part.num_fallbacks for part in parts),
    )


def assert_same(batches: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """Bit for bit, the records of bad samples in any order and wherever their shards lie."""
    assert [batch.index for batch in batches] == [batch.index for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        assert batch._tensors().keys() == other._tensors().keys()
        for name, value in other._tensors().items():
            torch.testing.assert_close(getattr(batch, name), value, rtol=0, atol=0)
        assert _bad_places(batch) == _bad_places(other)
        for name in ("max_length", "captions_per_image", "augment_seeds", "num_fallbacks"):
            assert getattr(batch, name) == getattr(other, name)


def _bad_places(batch: Batch) -> set[tuple[str, str, str, int]]:
    return {(bad.source, posixpath.basename(bad.shard), bad.key, bad.sample_id) for bad in batch.bad}
