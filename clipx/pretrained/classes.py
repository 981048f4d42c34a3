"""Classes as embeddings, and what pictures have to do with them: probabilities of the best classes.

With `multi` off the classes exclude each other: their probabilities are the softmax over `logit_scale` x cosine. With
`multi` on each class is a question of its own:

- A model trained with the sigmoid loss (arXiv 2303.15343) answers it as in training: sigmoid(`logit_scale` x cosine +
  bias).
- A model trained with the softmax loss has learned how many times likelier a text is with this picture than with any,
  up to a factor that only depends on the picture (arXiv 1807.03748, equation 2). Other texts give the factor: the mean
  of exp(`logit_scale` x cosine) over the other classes and everyday words (`REFERENCE`). The quotient of both is how
  much the picture changes the odds of the class, and before it is seen they are `PRIOR` / (1 - `PRIOR`). So a class is
  compared with what else could be said of a picture, and two classes that are both right do not share a sum.

Shapes: B pictures, C classes, R words of the reference, D embedding, K classes that are kept of each picture.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clipx.data.class_names import checked_classes, checked_templates
from clipx.errors import RunError
from clipx.pretrained.prompts import (
    TextEncoder,
    mean_embeddings,
    prompt_numbers,
    refuse_equals,
)

REFERENCE = (
    *("person", "face", "crowd", "dog", "cat", "bird", "horse", "fish", "insect", "flower", "tree"),
    *("forest", "mountain", "beach", "lake", "sky", "snow", "field", "street", "house", "tower", "bridge"),
    *("room", "kitchen", "chair", "table", "bed", "lamp", "window", "car", "truck", "bicycle", "train"),
    *("boat", "airplane", "food", "fruit", "cake", "drink", "shirt", "dress", "shoe", "hat", "bag"),
    *("book", "phone", "computer", "clock", "tool", "toy", "ball", "drawing", "painting"),
    *("map", "chart", "text", "logo", "sign", "pattern", "object"),
)
"""What else a picture may show."""
PRIOR = 0.1
"""The probability of a class before the picture is seen."""
_TILE = 8192  # classes that are compared at once: 8 MB of float32 for 256 pictures


class BestClasses(NamedTuple):
    """The best classes of each picture, from the best on; of equal ones the earlier class comes first."""

    index_BK: Tensor
    """int64, on the CPU."""
    probability_BK: Tensor
    """float64, on the CPU."""
    cosine_BK: Tensor
    """float32, on the CPU."""

    def named(self, names: Sequence[str]) -> list[dict[str, float]]:
        """For each picture the probability by class, the best first."""
        rows = zip(self.index_BK.tolist(), self.probability_BK.tolist(), strict=True)
        return [{names[i]: value for i, value in zip(*row, strict=True)} for row in rows]


@dataclass(frozen=True, kw_only=True)
class ClassEmbeddings:
    """Classes of one model."""

    names: tuple[str, ...]
    embedding_CD: Tensor
    """Of unit length, float32, on the model's device."""
    reference_RD: Tensor
    """Of the everyday words, in the same prompts."""

    @classmethod
    def of_rows(cls, names: Sequence[str], all_ND: Tensor) -> "ClassEmbeddings":
        """The classes of these names, from their embeddings with those of `REFERENCE` behind them."""
        return cls(names=tuple(names), embedding_CD=all_ND[: len(names)], reference_RD=all_ND[len(names) :])

    def best(
        self, image_BD: Tensor, *, logit_scale: float, logit_bias: float | None, top: int | None, multi: bool
    ) -> BestClasses:
        """The best classes of each picture, in memory for some thousand classes at once.

        Args:
            image_BD: embeddings of pictures, of unit length, at least one.
            logit_scale: of the model.
            logit_bias: of the model; None without one.
            top: K, at least 1; None, or more than there are, means all classes.
            multi: whether each class is a question of its own.

        Raises:
            RunError: an embedding is not finite.
        """
        image_BD = image_BD.to(self.embedding_CD.device).float()
        kept = min(top or len(self.names), len(self.names))
        best_BK, index_BK = image_BD.new_zeros(len(image_BD), 0), image_BD.new_zeros(len(image_BD), 0).long()
        total_B1 = image_BD.new_full((len(image_BD), 1), -torch.inf, dtype=torch.float64)
        with torch.autocast(image_BD.device.type, enabled=False):
            for start in range(0, len(self.names), _TILE):
                cosine_BT = image_BD @ self.embedding_CD[start : start + _TILE].T
                total_B1 = torch.logaddexp(total_B1, _log_sum(cosine_BT, logit_scale))
                found_BT, place_BT = _top(cosine_BT, min(kept, cosine_BT.shape[1]))
                best_BK = torch.cat([best_BK, found_BT], dim=1)
                best_BK, index_BK = _first(best_BK, torch.cat([index_BK, place_BT + start], dim=1), kept)
            reference_B1 = _log_sum(image_BD @ self.reference_RD.T, logit_scale)
        if not bool(best_BK.isfinite().all()):  # NaN is the largest of all to torch
            raise RunError("the model's embeddings are not finite numbers; its weights are broken")
        logit_BK = best_BK.double() * logit_scale
        if not multi:
            probability_BK = (logit_BK - total_B1).exp()
        elif logit_bias is not None:
            probability_BK = (logit_BK + logit_bias).sigmoid()
        else:
            others_BK = total_B1 + torch.log1p(-(logit_BK - total_B1).exp().clamp(max=1))
            count = len(self.names) - 1 + len(self.reference_RD)
            mean_BK = torch.logaddexp(others_BK, reference_B1) - math.log(count)
            probability_BK = (logit_BK - mean_BK + math.log(PRIOR / (1 - PRIOR))).sigmoid()
        return BestClasses(index_BK.cpu(), probability_BK.cpu(), best_BK.cpu())


def embed_classes(
    encoder: TextEncoder,
    class_names: Sequence[str],
    *,
    templates: str | Sequence[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> ClassEmbeddings:
    """The embeddings of classes between which the model can tell.

    Args:
        encoder: the model.
        class_names: at least one.
        templates: prompts, each with `{c}` in the place of the class.
        on_progress: gets (prompts done, prompts) after each forward pass.

    Raises:
        InputError: no class, a blank one, one twice to the model, or a template without `{c}`.
    """
    names, prompts = checked_classes(class_names), checked_templates(templates)
    refuse_equals(prompt_numbers(encoder, names, templates=prompts), names)
    all_ND = mean_embeddings(encoder, (*names, *REFERENCE), templates=prompts, on_progress=on_progress)
    return ClassEmbeddings.of_rows(names, all_ND)


def _log_sum(cosine_BN: Tensor, logit_scale: float) -> Tensor:
    """The logarithm of the sum of exp(`logit_scale` x cosine) of each row, float64 (B, 1)."""
    return (cosine_BN.double() * logit_scale).logsumexp(1, keepdim=True)


def _top(value_BN: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row and their places; of equal ones those that come first are kept, in any order."""
    found_BK, place_BK = value_BN.topk(kept, dim=1)
    if bool(((value_BN >= found_BK[:, -1:]).sum(1) > kept).any()):  # topk keeps any of them
        place_BK = value_BN.argsort(dim=1, descending=True, stable=True)[:, :kept]
        found_BK = value_BN.gather(1, place_BK)
    return found_BK, place_BK


def _first(value_BN: Tensor, index_BN: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row and their indices, from the largest on; of equal ones the lower index first."""
    by_index_BN = index_BN.argsort(dim=1)
    value_BN, index_BN = value_BN.gather(1, by_index_BN), index_BN.gather(1, by_index_BN)
    order_BN = value_BN.argsort(dim=1, descending=True, stable=True)[:, :kept]
    return value_BN.gather(1, order_BN), index_BN.gather(1, order_BN)
