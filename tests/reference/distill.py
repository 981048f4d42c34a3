"""Distillation by the textbook: whole G x G matrices in float64, differentiated by autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def distill(
    image_GD: Tensor,
    text_GD: Tensor,
    logit_scale: Tensor,
    *,
    teachers: Sequence[tuple[Tensor, Tensor, float, float]],
) -> tuple[Tensor, Tensor]:
    """The loss over all G pairs and each teacher's (K,) (MobileCLIP, arXiv 2311.17049, L_Distill).

    `teachers` are (images, texts, multiplier, weight).
    """
    student_GG = logit_scale.double() * image_GD.double() @ text_GD.double().T
    divergences = []
    for image_GE, text_GE, scale, _ in teachers:
        teacher_GG = scale * image_GE.double() @ text_GE.double().T
        both = [
            functional.kl_div(
                functional.log_softmax(student, dim=1),
                functional.log_softmax(teacher, dim=1),
                log_target=True,
                reduction="batchmean",
            )
            for student, teacher in ((student_GG, teacher_GG), (student_GG.T, teacher_GG.T))
        ]
        divergences.append(sum(both) / 2)
    weights = torch.tensor([weight for *_, weight in teachers], dtype=torch.float64)
    of_teachers_K = torch.stack(divergences)
    return (weights / weights.sum()) @ of_teachers_K, of_teachers_K.detach()
