"""The contrastive loss of held-out pairs, in batches as large as those that are trained on.

A contrastive loss grows with its batch, and with how alike the batch's pairs are. So batches have one size, and pairs
come in one random order, which depends on their number alone: neighbours of a shard are often alike, and training mixes
them, too. What is left over is left out, and the note counts it; a set smaller than a batch is one batch.

The loss is the run's own, in float64 on float32 embeddings: its value depends on ranks and tiles by rounding alone. All
ranks share the forward passes as in any evaluation (`sharing`), and the tiles of each batch as in training; where
batches cannot be cut into equal parts, each rank takes whole ones in turn.

Shapes: N pairs, G of a batch, B of them on this rank, D embedding.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.counter_random import Stream, permutation, start
from clipx.data.captions import caption_group
from clipx.data.labelled import RetrievalSet
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.distributed.parallelize import full_tensor
from clipx.errors import InputError
from clipx.evaluate.features import Features, features_of, gathered
from clipx.evaluate.mapped_rows import take_rows
from clipx.evaluate.options import EvaluateOptions, Evaluation
from clipx.evaluate.sharing import embed_texts
from clipx.losses import ContrastiveLoss
from clipx.pretrained import Pretrained
from clipx.types import Embeddings

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """What is computed over each batch."""

    loss: ContrastiveLoss
    pairs: int
    """G, of a set that has as many."""
    equal_are_negatives: bool = True
    """Whether pairs of equal captions are each other's negatives (`data.equal_captions`)."""


def held_out_loss(
    pretrained: Pretrained,
    data: RetrievalSet,
    settings: HeldOutLoss,
    options: EvaluateOptions,
    *,
    group: ProcessGroup | None,
) -> Evaluation:
    """The mean over batches of the loss of each; every picture counts once, with its first caption.

    Returns:
        `loss`, the same on all ranks, and to 1e-6 for every number of them.

    Raises:
        InputError: there are fewer than two pairs, or a picture or caption is missing or cannot be decoded.
    """
    features = features_of(pretrained, data, options, group=group)
    lines = _first_lines(features)
    assert features.captions is not None
    captions = features.captions
    size = options.batch_size
    blocks = embed_texts(pretrained, (captions[int(line)] for line in lines), batch_size=size, group=group)
    text_ND = gathered(blocks, pretrained.config.embed_dim, batch_size=size, group=group)
    group_N = None
    if not settings.equal_are_negatives:
        group_N = np.fromiter((caption_group(captions[int(line)]) for line in lines), np.int64, count=len(lines))
    batches = list(batches_of(len(lines), settings.pairs))
    together, own = group, batches
    if len(batches[0]) % world_size(group):
        together, own = None, batches[rank(group) :: world_size(group)]
    total = torch.zeros((), dtype=torch.float64, device=pretrained.device)
    scale, bias = _multiplier(pretrained)
    for index_G in own:
        index_B = np.split(index_G, world_size(together))[rank(together)]
        embeddings = Embeddings(
            image_BD=_rows(features.image_ND, index_B, pretrained.device),
            text_BD=_rows(text_ND, index_B, pretrained.device),
            logit_scale=scale,
            logit_bias=bias,
        )
        ids_B = None if group_N is None else torch.from_numpy(group_N[index_B]).to(pretrained.device)
        with torch.no_grad(), torch.autocast(pretrained.device.type, enabled=False):
            total += settings.loss(embeddings, group=together, ids_B=ids_B)
    loss = all_reduce(total, "sum", group).item() / len(batches)
    return Evaluation(
        task="held_out_loss", metrics={"loss": loss}, note=_note(len(lines), len(batches), settings.pairs)
    )


def batches_of(num_pairs: int, size: int) -> Iterator[Ints]:
    """Yields the numbers of the pairs of each batch, int64 (G,); the same for all sets of so many pairs."""
    order_N = permutation(start(0, Stream.HELD_OUT), num_pairs)[0]
    size = min(size, num_pairs)
    for first in range(0, num_pairs - size + 1, size):
        yield order_N[first : first + size]


def _first_lines(features: Features) -> Ints:
    """For each picture its first line of caption, int64 (N,).

    Raises:
        InputError: a picture has none, or there are fewer than two.
    """
    assert features.image_P is not None
    count = len(features)
    if count < 2:
        raise InputError(f"the set has {count} pair: a contrastive loss compares at least 2; name more shards")
    lines_N = np.bincount(features.image_P, minlength=count)
    if not lines_N.all():
        raise InputError(f"{features.names[int(lines_N.argmin())]} has no caption; give it one, or leave it out")
    first_N: Ints = np.searchsorted(features.image_P, np.arange(count))
    return first_N


def _rows(rows_ND: NDArray[np.float32], index_B: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(take_rows(rows_ND, index_B)).to(device).double()


def _multiplier(pretrained: Pretrained) -> tuple[Tensor, Tensor | None]:
    """Multiplier and bias of the similarities, float64 (1,); of a sharded model gathered."""
    model = pretrained.model
    scale = full_tensor(model.log_logit_scale.detach()).double().exp()
    return scale, None if model.logit_bias is None else full_tensor(model.logit_bias.detach()).double()


def _note(num_pairs: int, num_batches: int, size: int) -> str:
    if num_pairs < size:
        return f"one batch of {num_pairs} pairs, fewer than the {size} of a whole one"
    left_out = num_pairs - num_batches * size
    said = f", {left_out} of {num_pairs} pairs left out" if left_out else ""
    return f"{num_batches} batch{'es' if num_batches > 1 else ''} of {size} pairs{said}"
