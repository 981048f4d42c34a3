"""Batches put together and compared."""

import posixpath
from collections.abc import Sequence

import torch

from clipx import types
from clipx.types import Batch


def join(parts: Sequence[Batch]) -> Batch:
    """One batch of the parts in their order: what the ranks' batches or the micro-batches of one are together."""
    first = parts[0]
    assert {part.index for part in parts} == {first.index}
    return first.with_tensors(
        types.join([part.tensors() for part in parts]),
        max_length=max(part.max_length for part in parts),
        bad=tuple(record for part in parts for record in part.bad),
        counts={name: sum(part.counts[name] for part in parts) for name in first.counts},
    )


def assert_same(batches: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """Bit for bit, the records of bad samples in any order and wherever their shards lie."""
    assert [batch.index for batch in batches] == [batch.index for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        tensors = batch.tensors()
        assert tensors.keys() == other.tensors().keys()
        for name, value in other.tensors().items():
            torch.testing.assert_close(tensors[name], value, rtol=0, atol=0)
        assert _bad_places(batch) == _bad_places(other)
        for name in ("max_length", "captions_per_image", "counts"):
            assert getattr(batch, name) == getattr(other, name)


def _bad_places(batch: Batch) -> set[tuple[str, str, str, int]]:
    return {(bad.source, posixpath.basename(bad.shard), bad.key, bad.sample_id) for bad in batch.bad}
