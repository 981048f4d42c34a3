"""Joint selection of a batch by the textbook: whole matrices in float64, losses from their definition, pair by pair.

Algorithm 1 of JEST (arXiv 2406.17711) with the loss of a candidate within the batch chosen so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Model:
    """What one model gives for all N pairs."""

    image_ND: Tensor
    text_ND: Tensor
    logit_scale: float
    logit_bias: float = 0.0

    def logits(self) -> Tensor:
        """float64 (N, N): images down, texts across."""
        return self.logit_scale * self.image_ND.double() @ self.text_ND.double().T + self.logit_bias


def loss_within(logits_NN: Tensor, pair: int, batch: list[int], ids_N: Tensor, *, kind: str) -> float:
    """The loss of a pair within a batch of others: InfoNCE's mean over both directions, or the sigmoid loss's sum."""
    others = [other for other in batch if ids_N[other] != ids_N[pair]]
    own = logits_NN[pair, pair]
    if kind == "sigmoid":
        negatives = torch.cat([logits_NN[pair, others], logits_NN[others, pair]])
        return float(-torch.sigmoid(own).log() - (1 - torch.sigmoid(negatives)).log().sum())
    both = (torch.cat([logits_NN[pair, others], own[None]]), torch.cat([logits_NN[others, pair], own[None]]))
    return float(sum(-(own.exp() / row.exp().sum()).log() for row in both) / 2)


def joint_selection(
    learner: Model | None,
    reference: Model | None,
    *,
    ids_N: Tensor,
    kind: str,
    score: str,
    size: int,
    noises: list[Tensor],
    gain: float = 1.0,
) -> tuple[list[int], dict[str, Tensor]]:
    """The chosen places in ascending order, and each model's losses (N,) within the whole batch.

    Args:
        learner: the model that trains.
        reference: the other one.
        ids_N: pairs of equal ids are not each other's negatives.
        kind: info_nce or sigmoid.
        score: learnability, easy_reference or hard_learner.
        size: G.
        noises: Gumbel noise (N,) of each chunk.
        gain: multiplier of scores.
    """
    logits = {"learner": None if learner is None else learner.logits()}
    logits |= {"reference": None if reference is None else reference.logits()}
    chosen: list[int] = []
    for noise_N in noises:
        losses = _losses(logits, chosen, ids_N, kind=kind, alone=not chosen)
        by_score = {
            "learnability": lambda of: of["learner"] - of["reference"],
            "easy_reference": lambda of: -of["reference"],
            "hard_learner": lambda of: of["learner"],
        }
        keys_N = gain * by_score[score](losses) + noise_N
        order = keys_N.argsort(descending=True).tolist()
        chosen += [place for place in order if place not in chosen][: size // len(noises)]
    return sorted(chosen), _losses(logits, chosen, ids_N, kind=kind, alone=False)


def _losses(
    logits: dict[str, Tensor | None], chosen: list[int], ids_N: Tensor, *, kind: str, alone: bool
) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    for name, of_model in logits.items():
        if of_model is None:
            continue
        if alone and kind == "info_nce":  # of which the loss of one pair is 0
            losses[name] = -of_model.diag()
        else:
            values = [loss_within(of_model, pair, chosen, ids_N, kind=kind) for pair in range(len(ids_N))]
            losses[name] = torch.tensor(values, dtype=torch.float64)
    return losses
