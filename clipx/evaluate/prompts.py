"""Embeddings of classes from ensembles of prompts (CLIP, arXiv 2103.00020, section 3.1.4).

Shapes: B prompts of this rank, C classes, D embedding.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional

from clipx.distributed.collectives import all_reduce
from clipx.evaluate.sharing import embed_texts
from clipx.pretrained import Pretrained


def fill(template: str, class_name: str) -> str:
    """The template with the class instead of `{c}`; other braces do not change."""
    return template.replace("{c}", class_name)


def token_keys(pretrained: Pretrained, texts: Sequence[str]) -> list[bytes]:
    """For each text what the model sees of it: texts with equal keys have equal tokens, and so one embedding."""
    if not texts:
        return []
    tokens_T, lengths_B = pretrained.tokenize(texts)
    return [row.numpy().tobytes() for row in tokens_T.split(lengths_B.tolist())]


def prompt_numbers(pretrained: Pretrained, class_names: Sequence[str], *, templates: Sequence[str]) -> list[int]:
    """For each class a number that classes share if all their prompts are equal to the model.

    The names need not be equal: CLIP lowers texts and cuts long ones. Numbers count from 0 in the order of the classes.
    """
    keys = [(key,) for key in token_keys(pretrained, [fill(templates[0], name) for name in class_names])]
    often = Counter(keys)
    whole = [
        tuple(token_keys(pretrained, [fill(template, name) for template in templates])) if often[key] > 1 else key
        for name, key in zip(class_names, keys, strict=True)
    ]
    numbers: dict[tuple[bytes, ...], int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in whole]


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
    for block, text_BD in embed_texts(pretrained, prompts, batch_size=batch_size, group=group):
        index_B = block.start + torch.arange(len(block.local), device=pretrained.device)
        sums_CD.index_add_(0, index_B // len(templates), text_BD.double())
    return functional.normalize(all_reduce(sums_CD, "sum", group), dim=1).float()
