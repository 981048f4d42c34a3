"""A map of embeddings: their two directions of most variance.

Shapes: N pictures, M captions, D embedding.
"""

from collections import Counter

import torch
from torch import Tensor

from clipx.data.labelled import ClassificationSet, LabelledImage
from clipx.pages import Html, Point, paragraph, picture_map, point_map, section
from clipx.pages.style import NUM_SERIES
from clipx.report.looked_at import LookedAt, evenly
from clipx.report.thumbnails import thumbnail

_MOST_POINTS = 1_500
_GRID = 13  # thumbnails along each side, so that they hardly hide each other
_THUMBNAIL = 44


def embedding_map(looked_at: LookedAt, text_MD: Tensor | None = None) -> Html:
    """Dots coloured by class, or pictures and captions where there are no classes; then some of the pictures."""
    rows = list(range(len(looked_at.images)))
    parts = looked_at.image_ND if text_MD is None else torch.cat([looked_at.image_ND, text_MD])
    place_N2, explained = principal(parts)
    places = [(x, y) for x, y in place_N2.tolist()]
    if text_MD is None:
        groups, group_N = _classes(looked_at)
        names = _names(looked_at)
        points = [Point(places[i], group_N[i], names[i]) for i in evenly(rows, _MOST_POINTS)]
    else:
        groups, half = ["pictures", "captions"], _MOST_POINTS // 2
        captions = list(range(len(rows), len(places)))
        points = [Point(places[i], 0) for i in evenly(rows, half)]
        points += [Point(places[i], 1) for i in evenly(captions, half)]
    note = (
        f"The two principal components hold {explained:.0%} of the variance: what lies apart here is apart, what lies "
        "together need not be alike."
    )
    shown = [(i, thumbnail(looked_at.images[i], size=_THUMBNAIL)) for i in _one_per_cell(place_N2[: len(rows)])]
    pictures = [(places[i], image) for i, image in shown if image is not None]
    return section(
        f"{looked_at.name}: a map of the embeddings",
        Html('<div class="charts">'),
        point_map(points, groups, title="Every dot a picture" if text_MD is None else "Pictures and captions"),
        picture_map(pictures, title="Some of the pictures, where they lie"),
        Html("</div>"),
        paragraph(note, quiet=True),
        level=3,
    )


def principal(x_ND: Tensor) -> tuple[Tensor, float]:
    """The places of rows along their two directions of most variance, float64 (N, 2), and the share of it there.

    Directions have no sign: their largest component is made positive, so that equal input gives one map.
    """
    centred_ND = x_ND.double() - x_ND.double().mean(dim=0)
    variance_D, axes_DD = torch.linalg.eigh(centred_ND.T @ centred_ND)
    axes_D2 = axes_DD[:, -2:].flip(1)
    largest_12 = axes_D2.gather(0, axes_D2.abs().argmax(dim=0, keepdim=True))
    axes_D2 = axes_D2 * largest_12.sign()
    total = float(variance_D.clamp(min=0).sum())
    return centred_ND @ axes_D2, float(variance_D[-2:].clamp(min=0).sum()) / total if total else 0.0


def _classes(looked_at: LookedAt) -> tuple[list[str], list[int]]:
    """The commonest classes, as many as there are colours, and each picture's place among them; -1 for the rest."""
    if not isinstance(looked_at.dataset, ClassificationSet):
        return [], [-1] * len(looked_at.images)
    labels = [image.label for image in looked_at.images if isinstance(image, LabelledImage)]
    common = [label for label, _ in Counter(labels).most_common(NUM_SERIES - 1)]
    names = [looked_at.dataset.class_names[label] for label in common]
    return names, [common.index(label) if label in common else -1 for label in labels]


def _names(looked_at: LookedAt) -> list[str]:
    if not isinstance(looked_at.dataset, ClassificationSet):
        return [image.name for image in looked_at.images]
    names = looked_at.dataset.class_names
    return [names[image.label] for image in looked_at.images if isinstance(image, LabelledImage)]


def _one_per_cell(place_N2: Tensor) -> list[int]:
    """Of the pictures in each cell of a grid the first."""
    low_2, high_2 = place_N2.amin(dim=0), place_N2.amax(dim=0)
    cell_N2 = ((place_N2 - low_2) / (high_2 - low_2).max().clamp(min=1e-12) * (_GRID - 1)).round().long()
    first: dict[tuple[int, ...], int] = {}
    for i, cell in enumerate(cell_N2.tolist()):
        first.setdefault(tuple(cell), i)
    return list(first.values())
