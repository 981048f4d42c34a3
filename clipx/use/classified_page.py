"""Classes of pictures as a page to look at: a contact sheet for each class, the surest pictures first."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from clipx.data.decode import UndecodableError, open_image
from clipx.data.inputs import Inputs
from clipx.data.rows.row import LeftOutError
from clipx.errors import ClipxError
from clipx.pages import Cell, Html, contact_sheet, facts, page, paragraph, picture, section, table, write_page
from clipx.printable import redact
from clipx.use.classified import Classified, Picture

MAX_PICTURES = 1000
"""On one page, some 10 MB: more of them no browser likes, and nobody looks at."""
_MAX_ROWS = 200  # of the table of classes, and of what was left out
_MAX_LINKS = 40
_SIZE = 192  # pixels of a thumbnail's longer side
_WITHOUT = "no class"
_THREADS = 4


def write_classified_page(path: Path, classified: Classified, inputs: Inputs, *, subtitle: str) -> None:
    """Writes the page; the pictures on it are read anew.

    Args:
        path: of the page; an earlier page of clipx's is replaced.
        classified: what stands on it.
        inputs: where its pictures come from.
        subtitle: what was asked of which model.

    Raises:
        InputError: it cannot be written, or something else is there.
    """
    by_class = _by_class(classified)
    shown = _shares({name: len(places) for name, places in by_class.items()}, MAX_PICTURES)
    chosen = [place for name, count in shown.items() for place in by_class[name][:count]]
    cells = dict(zip(chosen, _cells([classified[place] for place in chosen], inputs), strict=True))
    body = [facts(_facts(classified)), *map(paragraph, _notes(classified, len(chosen)))]
    for name, count in shown.items():
        every = len(by_class[name])
        said = f"{every:,} picture{'s' * (every > 1)}" + (
            f", the {count:,} surest of them here" if count < every else ""
        )
        sheet = contact_sheet(cells[place] for place in by_class[name][:count])
        body.append(section(name or _WITHOUT, paragraph(said, quiet=True), sheet))
    body.append(section("Classes", _class_table(classified)))
    if classified.left_out:
        body.append(section("Left out", _left_out_table(classified)))
    links = [name or _WITHOUT for name in islice(shown, _MAX_LINKS)]
    links += ["Classes", *["Left out"] * bool(classified.left_out)]
    write_page(path, page("Classified pictures", body, subtitle=subtitle, contents=links if len(shown) > 1 else ()))


def _by_class(classified: Classified) -> dict[str, list[int]]:
    """The places of the pictures by their most probable class, the surest first; classes with most pictures first.

    Those without a class come last, under an empty name.
    """
    groups: dict[str, list[tuple[float, int]]] = {}
    for place, (first, probability) in enumerate(
        zip(classified.index_NK[:, 0].tolist(), classified.probability_NK[:, 0].tolist(), strict=True)
    ):
        name = classified.class_names[first] if probability >= classified.threshold else ""
        groups.setdefault(name, []).append((-probability, place))
    ordered = sorted(groups.items(), key=lambda item: (item[0] == "", -len(item[1]), item[0]))
    return {name: [place for _, place in sorted(group)] for name, group in ordered}


def _shares(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """How many pictures of each class fit, `total` in all: as many of each as there are, or as of the others."""
    if sum(counts.values()) <= total:
        return dict(counts)
    limit = bisect_right(range(total + 1), total, key=lambda n: sum(min(n, count) for count in counts.values())) - 1
    shares = {name: min(limit, count) for name, count in counts.items()}
    left = total - sum(shares.values())
    for name, count in counts.items():  # what is left of the total
        if left and shares[name] < count:
            shares[name] += 1
            left -= 1
    return {name: share for name, share in shares.items() if share}


def _cells(pictures: Sequence[Picture], inputs: Inputs) -> list[Cell]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda found: _cell(found, inputs), pictures))


def _cell(found: Picture, inputs: Inputs) -> Cell:
    lines = [f"{label.name} {label.probability:.1%}" for label in found.labels[:5]] or [_WITHOUT]
    return Cell(_thumbnail(found, inputs), title=redact(found.key), lines=lines)


def _thumbnail(found: Picture, inputs: Inputs) -> Html | None:
    """The picture, small; None if it is gone meanwhile."""
    try:
        data = inputs.read(found.row).image
        if data is None:
            return None
        with open_image(data) as image:
            image.draft("RGB", (2 * _SIZE, 2 * _SIZE))  # a JPEG is decoded no larger than that
            image.load()
            return picture(image, alt=redact(found.key), size=_SIZE)
    except (LeftOutError, UndecodableError, ClipxError, OSError):
        return None


def _facts(classified: Classified) -> dict[str, int]:
    found = {"pictures": len(classified), "classes asked for": len(classified.class_names)}
    rest = {_WITHOUT: classified.num_without(), "left out": len(classified.left_out)}
    return found | {name: count for name, count in rest.items() if count}


def _notes(classified: Classified, num_shown: int) -> Iterator[str]:
    if num_shown < len(classified):
        yield f"{num_shown:,} of the {len(classified):,} pictures are on this page, the surest of each class."
    if classified.several:
        yield "Each class is a question of its own; a picture stands under its most probable one."


def _class_table(classified: Classified) -> Html:
    counts = classified.counts()
    rows = [(name, count, f"{count / len(classified):.1%}", f"{mean:.1%}") for name, count, mean in counts[:_MAX_ROWS]]
    more = f"The {_MAX_ROWS} most frequent of {len(counts):,} classes." if len(counts) > _MAX_ROWS else ""
    return table(["class", "pictures", "share", "mean probability"], rows, caption=more)


def _left_out_table(classified: Classified) -> Html:
    rows = [(redact(row.name), row.reason, redact(row.detail)) for row in classified.left_out[:_MAX_ROWS]]
    more = f"The first {_MAX_ROWS} of {len(classified.left_out):,}." if len(classified.left_out) > _MAX_ROWS else ""
    return table(["input", "reason", "detail"], rows, caption=more)
