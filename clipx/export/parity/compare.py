"""Compares what a consumer computes with what the trained model computes: a row of parity.json.

The limit binds where a consumer sees what the model sees: the same crop of a picture, the same token ids of a text.
Where it sees something else, the row says how often, and how far its results are from the model's.
Shapes: B images, N texts, D embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipx.export.parity.consumer import Outputs


def compare(ours: Outputs, theirs: Outputs, *, same_crop: Sequence[bool]) -> dict[str, Any]:
    """The row of a consumer: shares, the largest differences where its inputs are the same, and what is elsewhere.

    Args:
        ours: every field is given.
        theirs: of the same pictures and texts.
        same_crop: of each picture, whether the consumer cuts out the square that the model sees.
    """
    pictures_B = torch.tensor(same_crop, dtype=torch.bool)
    texts_N = _same_ids(ours, theirs)
    row: dict[str, Any] = {}
    if _sees_pictures(theirs):
        row |= {"pictures": len(pictures_B), "same_crop": _share(pictures_B)}
    if _reads_texts(theirs):
        row |= {"texts": len(texts_N), "same_token_ids": _share(texts_N)}
    row["largest_difference"] = _largest_differences(ours, theirs, pictures_B, texts_N)
    if theirs.image_BD is not None and not pictures_B.all():
        row["other_crop"] = {"pictures": int((~pictures_B).sum())} | _apart(ours.image_BD, theirs.image_BD, ~pictures_B)
    if theirs.text_ND is not None and not texts_N.all():
        row["other_token_ids"] = {"texts": int((~texts_N).sum())} | _apart(ours.text_ND, theirs.text_ND, ~texts_N)
    if (changed := _other_best_text(ours, theirs)) is not None:
        row["other_best_text"] = changed
    return row


def above_limit(row: dict[str, Any], limit: float | None) -> list[str]:
    """The differences of a row that are more than rounding, NaN included."""
    if limit is None:
        return []
    return [f"{name} by {value:.3g}" for name, value in row["largest_difference"].items() if not value <= limit]


def _same_ids(ours: Outputs, theirs: Outputs) -> Tensor:
    """Of each text, whether both have the same token ids; a consumer that tells none has the model's."""
    assert ours.tokens is not None
    given = ours.tokens if theirs.tokens is None else theirs.tokens
    return torch.tensor([a == b for a, b in zip(ours.tokens, given, strict=True)], dtype=torch.bool)


def _sees_pictures(theirs: Outputs) -> bool:
    fields = (theirs.pixels_B3SS, theirs.image_BD, theirs.logits_BN, theirs.hidden_BPC, theirs.scores_BN)
    return any(field is not None for field in fields)


def _reads_texts(theirs: Outputs) -> bool:
    return any(field is not None for field in (theirs.tokens, theirs.text_ND, theirs.logits_BN, theirs.scores_BN))


def _share(same: Tensor) -> float:
    return round(same.double().mean().item(), 4) if len(same) else 1.0


def _largest_differences(ours: Outputs, theirs: Outputs, pictures_B: Tensor, texts_N: Tensor) -> dict[str, float]:
    """Of each output that the consumer has, over the pictures and texts that both see alike."""
    found: dict[str, float] = {}
    for name, a, b in (
        ("pixels", ours.pixels_B3SS, theirs.pixels_B3SS),
        ("image_embeddings", ours.image_BD, theirs.image_BD),
    ):
        if a is not None and b is not None:
            found[name] = _largest(a[pictures_B], b[pictures_B])
    if ours.hidden_BPC is not None and theirs.hidden_BPC is not None:
        rows = pictures_B[: len(theirs.hidden_BPC)]
        a, b = ours.hidden_BPC[: len(rows)][rows], theirs.hidden_BPC[rows]
        # Hidden states have a few channels of hundreds: their rounding is measured against the largest.
        found["hidden_state"] = _largest(a, b) / max(a.abs().max().item() if a.numel() else 0.0, 1.0)
    if ours.text_ND is not None and theirs.text_ND is not None:
        found["text_embeddings"] = _largest(ours.text_ND[texts_N], theirs.text_ND[texts_N])
    if ours.logits_BN is not None and theirs.logits_BN is not None:
        found["logits"] = _largest(ours.logits_BN[pictures_B][:, texts_N], theirs.logits_BN[pictures_B][:, texts_N])
    if ours.scores_BN is not None and theirs.scores_BN is not None and texts_N.all():  # a softmax is over all texts
        found["scores"] = _largest(ours.scores_BN[pictures_B], theirs.scores_BN[pictures_B])
    return found


def _apart(ours_BD: Tensor | None, theirs_BD: Tensor, rows_B: Tensor) -> dict[str, float]:
    """How far embeddings of other inputs are from the model's."""
    assert ours_BD is not None
    a, b = ours_BD[rows_B].double(), theirs_BD[rows_B].double()
    return {
        "largest_difference": (a - b).abs().max().item(),
        "mean_difference": (a - b).abs().mean().item(),
        "lowest_cosine": (a * b).sum(dim=1).min().item(),
    }


def _other_best_text(ours: Outputs, theirs: Outputs) -> int | None:
    """The number of pictures for which the consumer finds another text the best; equal scores are no change."""
    logits_BN = theirs.logits_BN if theirs.logits_BN is not None else theirs.scores_BN
    if logits_BN is None and theirs.image_BD is not None and theirs.text_ND is not None:
        logits_BN = theirs.image_BD @ theirs.text_ND.T
    if logits_BN is None or ours.logits_BN is None or logits_BN.numel() == 0:
        return None
    best_B1 = logits_BN.argmax(dim=1, keepdim=True)
    lost_B = ours.logits_BN.max(dim=1).values - ours.logits_BN.gather(1, best_B1)[:, 0]
    return int((lost_B > 1e-3).sum())


def _largest(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
