"""The pairwise sigmoid loss by the textbook: the whole G x G matrix in float64, differentiated by autograd."""

from reference.info_nce import masks
from torch import Tensor
from torch.nn import functional


def sigmoid(
    image_GD: Tensor,
    text_GD: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    ids_G: Tensor | None = None,
    positive_ids_G: Tensor | None = None,
) -> Tensor:
    """The loss over all G pairs (arXiv 2303.15343, equation 1)."""
    logits_GG = logit_scale.double() * image_GD.double() @ text_GD.double().T + logit_bias.double()
    positive_GG, left_out_GG = masks(ids_G, positive_ids_G, len(logits_GG))
    sign_GG = 2 * positive_GG.double() - 1
    return -functional.logsigmoid(sign_GG * logits_GG).masked_fill(left_out_GG, 0).sum() / len(logits_GG)
