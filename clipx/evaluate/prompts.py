"""Embeddings of classes from ensembles of prompts (CLIP, arXiv 2103.00020, section 3.1.4).

Shapes: B prompts of this rank, C classes, D embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.sharing import embed_texts
from clipx.pretrained import Pretrained


def fill(template: str, class_name: str) -> str:
    """The template with the class instead of `{c}`; other braces do not change."""
    return template.replace("{c}", class_name)


def class_embeddings(
    pretrained: Pretrained,
    class_names: Sequence[str],
    *,
    templates: Sequence[str],
    batch_size: int,
    group: ProcessGroup | None,
) -> Tensor:
    """The embedding of each class: the mean of its prompts' unit-length embeddings, normalised to unit length.

    The sums are float64, so that the float32 result does not depend on the number of ranks; one all-reduce.

    Returns:
        float32 (C, D), the same on all ranks.
    """
    prompts = [fill(template, name) for name in class_names for template in templates]
    sums_CD = torch.zeros(len(class_names), pretrained.config.embed_dim, dtype=torch.float64, device=pretrained.device)
    index, step = rank(group), world_size(group)
    for local_prompts, text_BD in embed_texts(pretrained, prompts, batch_size=batch_size, group=group):
        index_B = index + step * torch.arange(len(local_prompts), device=pretrained.device)
        sums_CD.index_add_(0, index_B // len(templates), text_BD.double())
        index += step * len(local_prompts)
    return functional.normalize(all_reduce(sums_CD, "sum", group), dim=1).float()
