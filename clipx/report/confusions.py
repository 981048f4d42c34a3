"""Which classes a model takes for which, and pictures of it.

Shapes: N pictures, C classes, D embedding.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.data.labelled import ClassificationSet, LabelledImage
from clipx.evaluate.prompts import class_embeddings
from clipx.pages import Cell, Html, contact_sheet, heat_map, joined, paragraph, section, table
from clipx.pretrained import Pretrained
from clipx.report.looked_at import LookedAt, evenly
from clipx.report.thumbnails import thumbnail

_MOST_PROMPTS = 8_000  # a core embeds some 700 a second
_WHOLE = 60  # classes: of more, only those with the most mistakes are drawn
_MOST_LISTED = 15
_WRONG, _RIGHT = 12, 6


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """The class that a model takes each picture for."""

    looked_at: LookedAt
    names: tuple[str, ...]
    label_N: Tensor
    """int64."""
    guess_N: Tensor
    """int64."""
    sure_N: Tensor
    """float32: the softmax of the similarities at the guess."""
    right_N: Tensor
    """bool."""
    templates: str
    """What was said of the prompts, for a person; empty if all were used."""

    def confusions(self) -> list[tuple[int, int, int]]:
        """Class, the class it was taken for, and how often; the commonest first."""
        wrong = ~self.right_N
        pairs = Counter(zip(self.label_N[wrong].tolist(), self.guess_N[wrong].tolist(), strict=True))
        return [(label, guess, count) for (label, guess), count in sorted(pairs.items(), key=lambda item: -item[1])]


def guess(pretrained: Pretrained, looked_at: LookedAt, dataset: ClassificationSet) -> Guesses:
    """Takes every picture for the class with the nearest embedding of its prompts, of equal ones the first."""
    names, templates = dataset.class_names, dataset.templates
    used = templates[: max(1, _MOST_PROMPTS // len(names))]
    told = f"with {len(used)} of the {len(templates)} templates" if len(used) < len(templates) else ""
    class_CD = class_embeddings(pretrained, names, templates=used, batch_size=256, group=None).cpu()
    score_NC = looked_at.image_ND @ class_CD.T
    sure_N, guess_N = (pretrained.logit_scale * score_NC).softmax(dim=1).max(dim=1)
    labels = [image.label for image in looked_at.images if isinstance(image, LabelledImage)]
    label_N = torch.tensor(labels, dtype=torch.int64)
    return Guesses(
        looked_at=looked_at,
        names=names,
        label_N=label_N,
        right_N=label_N == guess_N,
        guess_N=guess_N,
        sure_N=sure_N,
        templates=told,
    )


def confusions(guesses: Guesses) -> Html:
    """The section of one classification set."""
    looked_at = guesses.looked_at
    share = float(guesses.right_N.double().mean())
    told = ", ".join(part for part in (looked_at.how_many(), guesses.templates) if part)
    return section(
        f"{looked_at.name}: right and wrong",
        paragraph(f"{share:.1%} right ({told})."),
        _matrix(guesses),
        _largest(guesses),
        _sheets(guesses),
        level=3,
    )


def _matrix(guesses: Guesses) -> Html:
    """The confusion matrix, or of very many classes the part with the most mistakes."""
    count, title = len(guesses.names), "Confusion matrix"
    classes = list(range(count))
    if count > _WHOLE:
        wrong = torch.bincount(guesses.label_N[~guesses.right_N], minlength=count)
        classes = sorted(wrong.argsort(descending=True, stable=True)[:_WHOLE].tolist())
        title = f"Confusion matrix of the {_WHOLE} classes with the most mistakes, of {count:,}"
    of_class = torch.bincount(guesses.label_N, minlength=count).tolist()
    counts = Counter(zip(guesses.label_N.tolist(), guesses.guess_N.tolist(), strict=True))
    values = [[counts[label, taken] / max(of_class[label], 1) for taken in classes] for label in classes]
    return heat_map(values, [guesses.names[i] for i in classes], title=title, rows="is", columns="taken for")


def _largest(guesses: Guesses) -> Html:
    found = guesses.confusions()
    if not found:
        return paragraph("No picture was taken for another class.")
    of_class = torch.bincount(guesses.label_N, minlength=len(guesses.names)).tolist()
    rows = [
        [guesses.names[label], guesses.names[taken], count, f"{count / of_class[label]:.0%}"]
        for label, taken, count in found[:_MOST_LISTED]
    ]
    more = f" (of {len(found):,})" if len(found) > _MOST_LISTED else ""
    return table(("is", "taken for", "pictures", "of its class"), rows, caption=f"The commonest mistakes{more}")


def _sheets(guesses: Guesses) -> Html:
    """The mistakes that the model is surest of, and some of what it has right."""
    wrong = [i for i in guesses.sure_N.argsort(descending=True).tolist() if not guesses.right_N[i]]
    of_class = {int(guesses.label_N[i]): i for i in reversed(guesses.right_N.nonzero()[:, 0].tolist())}
    right = [of_class[label] for label in sorted(of_class)]
    cells = [_cell(guesses, i) for i in wrong[:_WRONG]] + [_cell(guesses, i) for i in evenly(right, _RIGHT)]
    note = "Wrong ones first, those that the model is surest of; the share is its softmax over the classes."
    return joined([contact_sheet(cells), paragraph(note, quiet=True)])


def _cell(guesses: Guesses, i: int) -> Cell:
    image, label, taken = guesses.looked_at.images[i], int(guesses.label_N[i]), int(guesses.guess_N[i])
    name, right = guesses.names[taken], label == taken
    lines = [f"{float(guesses.sure_N[i]):.0%} sure"] + ([] if right else [f"is: {guesses.names[label]}"])
    return Cell(thumbnail(image), name, lines, right)
