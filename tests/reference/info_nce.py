"""InfoNCE by the textbook: the whole G x G matrix in float64, differentiated by autograd."""

import torch
from torch import Tensor
from torch.nn import functional


def masks(ids_G: Tensor | None, positive_ids_G: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """(positive, left out), bool (G, G); ids (G,), (G, C) or, of images and texts, (G, 2, C)."""
    positive_GG = torch.eye(size, dtype=torch.bool)
    if positive_ids_G is not None:
        positive_GG = positive_ids_G[:, None] == positive_ids_G
    if ids_G is None:
        return positive_GG, torch.zeros_like(positive_GG)
    image_GC, text_GC = ids_G.unbind(1) if ids_G.dim() == 3 else [ids_G.view(size, -1)] * 2
    equal_GG = torch.tensor([[bool((image_C == text_C).any()) for text_C in text_GC] for image_C in image_GC])
    return positive_GG, equal_GG & ~positive_GG & ~torch.eye(size, dtype=torch.bool)


def info_nce(
    image_GD: Tensor,
    text_GD: Tensor,
    logit_scale: Tensor,
    *,
    ids_G: Tensor | None = None,
    positive_ids_G: Tensor | None = None,
) -> Tensor:
    """The loss over all G pairs (arXiv 2103.00020, figure 3; several positives: arXiv 2004.11362, equation 2)."""
    logits_GG = logit_scale.double() * image_GD.double() @ text_GD.double().T
    positive_GG, left_out_GG = masks(ids_G, positive_ids_G, len(logits_GG))
    allowed_GG = logits_GG.masked_fill(left_out_GG, -torch.inf)
    total = logits_GG.new_zeros(())
    for log_probability_GG in (functional.log_softmax(allowed_GG, dim=1), functional.log_softmax(allowed_GG.T, dim=1)):
        of_positives_GG = log_probability_GG.masked_fill(~positive_GG, 0)
        total = total - (of_positives_GG.sum(1) / positive_GG.sum(1)).mean()
    return total / 2
