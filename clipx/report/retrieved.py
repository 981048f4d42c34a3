"""Retrieval between pictures and captions, right and wrong, with the pictures.

Shapes: N pictures, M distinct captions, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.data.labelled import CaptionedImage
from clipx.pages import Cell, Html, contact_sheet, joined, paragraph, section
from clipx.pretrained import Pretrained
from clipx.report.looked_at import LookedAt, evenly, texts_of
from clipx.report.thumbnails import thumbnail

_BATCH = 256
_SHOWN = 6  # queries of each kind
_QUERIES, _NEAREST = 3, 4  # captions of each kind, and the pictures shown for each
_MOST_SCORES = 50_000_000  # of pictures with captions, float32
_LETTERS = 160  # of a caption


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """The embeddings of some pictures and of all their captions."""

    looked_at: LookedAt
    texts: list[str]
    text_MD: Tensor
    """float32, unit length, on the CPU."""


def retrieve(pretrained: Pretrained, looked_at: LookedAt) -> Retrieved:
    """Embeds the captions of pictures, at most as many as can be compared with all pictures in 200 MB."""
    texts = texts_of(looked_at.images)[: max(1, _MOST_SCORES // max(len(looked_at.images), 1))]
    rows = [
        pretrained.encode_text(texts[start : start + _BATCH]).float().cpu() for start in range(0, len(texts), _BATCH)
    ]
    return Retrieved(looked_at=looked_at, texts=texts, text_MD=torch.cat(rows))


def retrieved(found: Retrieved) -> Html:
    """The section of one retrieval set."""
    looked_at = found.looked_at
    score_NM = looked_at.image_ND @ found.text_MD.T
    own = [set(image.captions) if isinstance(image, CaptionedImage) else set() for image in looked_at.images]
    best_N = score_NM.argmax(dim=1).tolist()
    hits_N = [found.texts[best] in captions for best, captions in zip(best_N, own, strict=True)]
    share = sum(hits_N) / len(hits_N)
    told = (
        f"Of {looked_at.how_many()} with {len(found.texts):,} different captions, {share:.1%} have one of their own as "
        "the nearest of these."
    )
    wrong = [i for i, hit in enumerate(hits_N) if not hit]
    right = [i for i, hit in enumerate(hits_N) if hit]
    shown = evenly(wrong, _SHOWN) + evenly(right, _SHOWN)
    cells = [_picture_cell(found, own, score_NM, i) for i in shown]
    return section(
        f"{looked_at.name}: found and missed",
        paragraph(told),
        contact_sheet(cells),
        paragraph("Each picture with its nearest caption, and its cosine.", quiet=True),
        _by_caption(found, own, score_NM),
        level=3,
    )


def _picture_cell(found: Retrieved, own: list[set[str]], score_NM: Tensor, i: int) -> Cell:
    image, best = found.looked_at.images[i], int(score_NM[i].argmax())
    right = found.texts[best] in own[i]
    lines = [f"cosine {float(score_NM[i, best]):.2f}"]
    if not right and own[i]:
        # in the set's order, not a set's, which differs from process to process
        first = next(text for text in found.texts if text in own[i]) if own[i] & set(found.texts) else min(own[i])
        lines.append(f"its own: {_cut(first)}")
    return Cell(thumbnail(image), _cut(found.texts[best]), lines, right)


def _by_caption(found: Retrieved, own: list[set[str]], score_NM: Tensor) -> Html:
    """Some captions with their nearest pictures."""
    best_M = score_NM.argmax(dim=0).tolist()
    hits = [text in own[best] for text, best in zip(found.texts, best_M, strict=True)]
    wrong = [m for m, hit in enumerate(hits) if not hit]
    right = [m for m, hit in enumerate(hits) if hit]
    share = sum(hits) / len(hits)
    parts = [paragraph(f"Of the captions {share:.1%} have a picture of their own as the nearest.")]
    for m in evenly(wrong, _QUERIES) + evenly(right, _QUERIES):
        text = found.texts[m]
        nearest = score_NM[:, m].topk(min(_NEAREST, len(own))).indices.tolist()
        cells = []
        for i in nearest:
            image = found.looked_at.images[i]
            cells.append(Cell(thumbnail(image), f"cosine {float(score_NM[i, m]):.2f}", (), text in own[i]))
        parts.append(section(f"“{_cut(text)}”", contact_sheet(cells), level=4))
    return joined(parts)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LETTERS else f"{line[:_LETTERS]}..."
