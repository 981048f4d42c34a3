"""What a fitted model predicts for held-out samples, with all inputs and with modalities taken away.

Pictures and texts are encoded once, whatever is taken away. Every block of samples is a batch of its own, and the rows
of all ranks are put together in the order of the samples. Nothing is drawn: neither dropout nor what is absent.

Shapes: B rows of a block, N all rows, M modalities, O raw outputs, T columns of targets, P passes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.in_order import InOrder
from clipx.distributed.collectives import all_gather, gather_objects, rank
from clipx.models.evaluating import evaluating
from clipx.models.fused import KEPT, FusedModel
from clipx.types import BadSample, Batch

BLOCK = 256
"""Samples of a forward pass."""
PRESENCE, TARGETS = "presence_BM", "targets_BO"


@dataclass(frozen=True, kw_only=True)
class PredictedRows:
    """The samples that could be read, in their order; all float32 and on the CPU."""

    raw_PNO: Tensor
    """The model's outputs in each pass."""
    targets_NT: Tensor
    """What is right, NaN where absent."""
    there_NM: Tensor
    """bool: which modalities they have."""
    bad: tuple[BadSample, ...]
    """The others."""


@torch.no_grad()
def predicted_rows(
    model: FusedModel,
    modalities: Sequence[str],
    blocks: Iterable[InOrder],
    *,
    passes: Sequence[str | None],
    group: ProcessGroup | None,
    between: Callable[[], None] = lambda: None,
) -> PredictedRows | None:
    """Predicts this rank's blocks; every rank of `group` must call it.

    Args:
        model: bare, or as FSDP2 shards it; its modes are restored.
        modalities: M names, in the order of the column of presence.
        blocks: of at most `BLOCK` samples; as many on every rank, and one at least.
        passes: the modality that is taken away in each, or None.
        group: all ranks.
        between: called before every block.

    Returns:
        The rows of all ranks on rank 0, elsewhere None.
    """
    device = next(model.parameters()).device
    absent = [None if name is None else modalities.index(name) for name in passes]
    kept: list[Tensor] = []
    bad: list[BadSample] = []
    with evaluating(model):
        for found in blocks:
            between()
            bad += found.batch.bad
            batch = _encoded(model, modalities, found.batch.to(device))
            outputs = [_outputs(model, batch, index) for index in absent]
            columns = [batch.columns[PRESENCE], batch.columns[TARGETS], *outputs]
            num_targets = columns[1].shape[1]
            rows_BC = _all_rows(torch.cat(columns, dim=1)[: len(found.numbers)], group)
            if rank(group) == 0:
                kept.append(rows_BC.cpu())
    everyones = [sample for of_rank in gather_objects(bad, group) for sample in of_rank]
    if rank(group) != 0:
        return None
    there_NM, targets_NT, raw_NC = torch.cat(kept).tensor_split([len(modalities), len(modalities) + num_targets], dim=1)
    return PredictedRows(
        raw_PNO=torch.stack(raw_NC.chunk(len(passes), dim=1)),
        targets_NT=targets_NT,
        there_NM=there_NM > 0,
        bad=tuple(everyones),
    )


def _encoded(model: FusedModel, modalities: Sequence[str], batch: Batch) -> Batch:
    """The batch with vectors of its pictures and texts, as if they had been kept."""
    vectors: dict[str, Tensor] = {}
    if "image" in modalities and KEPT["image"] not in batch.columns:
        vectors[KEPT["image"]] = model.encode_image(batch.images_IHWC)
    if "text" in modalities and KEPT["text"] not in batch.columns:
        vectors[KEPT["text"]] = model.encode_text(batch.tokens_T, batch.lengths_B, max_length=batch.max_length)
    return replace(batch, columns={**batch.columns, **vectors})


def _outputs(model: FusedModel, batch: Batch, absent: int | None) -> Tensor:
    """The raw outputs (B, O) where a modality is absent from all rows, float32."""
    if absent is not None:
        presence_BM = batch.columns[PRESENCE].clone()
        presence_BM[:, absent] = 0
        batch = replace(batch, columns={**batch.columns, PRESENCE: presence_BM})
    return model(batch, seed=0).raw_BO.float()


def _all_rows(local_BC: Tensor, group: ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in the order of ranks; one all-gather of as much as a whole block has."""
    if group is None:
        return local_BC
    padded = local_BC.new_zeros(BLOCK, 1 + local_BC.shape[1])
    padded[: len(local_BC), 0] = 1
    padded[: len(local_BC), 1:] = local_BC
    gathered = all_gather(padded, group)
    return gathered[gathered[:, 0] > 0, 1:]
