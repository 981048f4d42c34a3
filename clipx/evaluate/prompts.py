"""Embeddings of classes from ensembles of prompts, shared among ranks.

Shapes: B prompts of this rank, C classes, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import all_reduce
from clipx.evaluate.sharing import embed_texts
from clipx.pretrained import Pretrained
from clipx.pretrained.prompts import fill, prompt_numbers, token_keys, unit_means

__all__ = ["class_embeddings", "fill", "prompt_numbers", "token_keys"]


def class_embeddings(
    pretrained: Pretrained,
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    batch_size: int,
    group: ProcessGroup | None,
) -> Tensor:
    """The embedding of each class, as `clipx.pretrained.prompts.mean_embeddings` has it.

    The sums are float64, so that the float32 result does not depend on the number of ranks; one all-reduce.

    Returns:
        float32 (C, D), the same on all ranks.
    """
    prompts = [fill(template, name) for name in class_names for template in templates]
    sums_CD = torch.zeros(len(class_names), pretrained.config.embed_dim, dtype=torch.float64, device=pretrained.device)
    for block, text_BD in embed_texts(pretrained, prompts, batch_size=batch_size, group=group):
        index_B = block.start + torch.arange(len(block.local), device=pretrained.device)
        sums_CD.index_add_(0, index_B // len(templates), text_BD.double())
    return unit_means(all_reduce(sums_CD, "sum", group))
