"""Samples of which everything that a batch needs is kept in arrays: nothing is read, decoded or encoded again.

`KeptBatchReader` stands where `clipx.data.samples.BatchReader` does and gives the same columns in the same order, with
vectors of pictures and texts in the place of pixels and tokens. Row i of every array is that of sample i.

Shapes: N samples, B rows of a part of a batch, M modalities.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipx import counter_random
from clipx.counter_random import Stream
from clipx.data.columns import ColumnSpec, RawSample
from clipx.data.in_order import InOrder, own_blocks
from clipx.data.modality_dropout import ModalityDropout
from clipx.data.order import DataOrder
from clipx.data.sample_refs import SampleRef
from clipx.data.samples import PartialBatch, join_parts
from clipx.errors import RunError
from clipx.types import BadSample

PRESENCE = "presence_BM"
_NO_COUNTS = {"pillow_images": 0.0, "deep_images": 0.0}  # nothing is decoded


@dataclass(frozen=True, kw_only=True)
class KeptSamples:
    """All samples of a set."""

    columns: Mapping[str, np.ndarray]
    """(N, ...) by name of the batch's column, perhaps mapped from files; presence as it is in the table."""
    bad: Mapping[int, BadSample]
    """Those that cannot be read, by number; their rows mean nothing."""
    blank_tokens: np.ndarray
    """int64: the tokens of an empty text, which stand for every text."""

    @property
    def num_samples(self) -> int:
        """N, the bad ones included."""
        return len(self.columns[PRESENCE])

    def rows(self, sample_id_B: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of these samples, and the blank texts that stand for theirs."""
        num_rows, num_tokens = len(sample_id_B), len(self.blank_tokens)
        return {
            "tokens_T": np.tile(self.blank_tokens, num_rows),
            "lengths_B": np.full(num_rows, num_tokens, dtype=np.int64),
            "sample_id_I": sample_id_B,
            "slot_I": np.arange(num_rows, dtype=np.int64),
            "source_I": np.zeros(num_rows, dtype=np.int64),
            **{name: values[sample_id_B] for name, values in self.columns.items()},
        }

    def in_order(self, *, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[InOrder]:
        """What `clipx.data.in_order.batches_in_order` yields, with kept vectors."""
        for block in own_blocks(self.num_samples, batch_size=batch_size, rank=rank, world_size=world_size):
            bad = tuple(self.bad[number] for number in block.samples if number in self.bad)
            numbers = tuple(number for number in block.samples if number not in self.bad)
            columns = self.rows(np.array(numbers or (0,), dtype=np.int64))
            if not numbers:  # one blank row, of no sample
                columns |= {name: np.zeros_like(columns[name]) for name in self.columns}
                columns["sample_id_I"] = np.array([-1])
            columns["augment_seed_I"] = np.zeros(len(columns["slot_I"]), dtype=np.int64)
            part = PartialBatch(block.number, columns, bad, _NO_COUNTS, read_wait_s=0.0)
            images_ISSC = torch.zeros((len(columns["slot_I"]), 0, 0, 3), dtype=torch.uint8)
            yield InOrder(join_parts([part], images_ISSC, captions_per_image=1), numbers)


class KeptColumns:
    """Says which columns of vectors there are; `KeptBatchReader` reads them.

    Args:
        names: of the columns.
        dim: D.
    """

    extensions: frozenset[str] = frozenset()
    """None."""

    def __init__(self, names: Sequence[str], *, dim: int) -> None:
        self.columns = {name: ColumnSpec(np.dtype(np.float32), (dim,)) for name in names}
        """By name."""

    def read(self, sample: RawSample) -> Mapping[str, np.ndarray]:
        """Nothing: there are no vectors in shards."""
        raise AssertionError(f"{sorted(self.columns)} are kept, not read")


class KeptBatchReader:
    """Reads parts of batches out of arrays.

    Args:
        order: of the samples.
        kept: they themselves.
        dropout: what is hidden of them.
    """

    captions_per_image = 1
    """K."""

    def __init__(self, order: DataOrder, kept: KeptSamples, *, dropout: ModalityDropout) -> None:
        assert order.num_samples == kept.num_samples
        self._order = order
        self._kept = kept
        self._dropout = dropout
        self._is_bad_N = np.zeros(kept.num_samples, dtype=bool)
        self._is_bad_N[list(kept.bad)] = True

    def read(self, batch_index: int, slots: range, *, out: Tensor, prefetch: bool = True) -> PartialBatch:
        """Reads `slots` of global batch `batch_index`; `out` has no pixels, and nothing is fetched.

        Raises:
            RunError: no good sample within `max_replacement_distance`.
        """
        refs = self._order.sample_refs(batch_index, slice(slots.start, slots.stop))
        sample_id_B, epoch_B = refs.sample_id_B.copy(), refs.epoch_B.copy()
        bad: dict[int, BadSample] = {}
        for row in np.flatnonzero(self._is_bad_N[sample_id_B]).tolist():
            first = int(sample_id_B[row])
            good = self._next_good(batch_index, slots[row], first, bad=bad)
            sample_id_B[row], epoch_B[row] = good.sample_id, good.epoch
        columns = self._kept.rows(sample_id_B)
        columns["slot_I"] = np.arange(slots.start, slots.stop)
        columns["augment_seed_I"] = counter_random.keys(self._order.seed, Stream.AUGMENT, epoch_B, sample_id_B)
        columns[PRESENCE] = self._dropout(columns[PRESENCE], epoch_B=epoch_B, sample_id_B=sample_id_B)
        return PartialBatch(batch_index, columns, tuple(bad.values()), _NO_COUNTS, read_wait_s=0.0)

    def _next_good(self, batch_index: int, slot: int, first: int, *, bad: dict[int, BadSample]) -> SampleRef:
        """The next good sample of a slot's lane; bad ones before it, from `first` on, are added to `bad`."""
        number = first
        for attempt in itertools.count(1):
            bad[number] = self._kept.bad[number]
            tried = self._order.replacement(batch_index, slot, attempt)
            if tried is None:
                found = bad[first]
                raise RunError(
                    f"none of {attempt} samples in a row is readable, from {found.key} of {found.shard} on "
                    f"({found.reason}); `clipx data check` looks through the shards"
                )
            if not self._is_bad_N[tried.sample_id]:
                return tried
            number = tried.sample_id
        raise AssertionError("unreachable")
