"""The parts of a report that need the model: each evaluation set through the newest checkpoint."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from clipx.config.evaluate import EvaluateConfig, HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.data.labelled import (
    AnySet,
    ClassificationSet,
    MultiLabelSet,
    RetrievalSet,
    open_classes,
    open_retrieval,
    open_set,
)
from clipx.errors import ClipxError
from clipx.pages import Html, paragraph
from clipx.pretrained import Pretrained, load
from clipx.report.confusions import confusions, guess
from clipx.report.embedding_map import embedding_map
from clipx.report.looked_at import look
from clipx.report.recorded import Recorded
from clipx.report.retrieved import retrieve, retrieved
from clipx.report.scores import SetSize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """What the model makes of the evaluation sets."""

    parts: list[Html] = field(default_factory=list)
    sizes: dict[str, SetSize] = field(default_factory=dict)
    """Of each evaluation's set."""


def pictures(
    run: Recorded, *, folders: Sequence[Path] = (), most: int, on_set: Callable[[str], None] = lambda _: None
) -> Pictures:
    """Embeds pictures of the run's evaluation sets, and of `folders`, and shows what comes of it.

    Whatever is missing, the model or a set, is said in its place.

    Args:
        folders: further sets.
        most: pictures of each set.
        on_set: told the name of each before it is read.
    """
    found = Pictures()
    sets = {} if run.config is None else dict(run.config.evaluate)
    if not sets and not folders:
        found.parts.append(paragraph("The run has no evaluation sets; --on DATASET_DIR shows what it makes of one."))
        return found
    try:
        pretrained = load(run.folder, device=_device(run))
    except ClipxError as error:
        found.parts.append(paragraph(f"No pictures: {error}"))
        return found
    seen: set[str] = set()
    for name, opening in _openings(sets, folders):
        on_set(name)
        try:
            dataset = opening()
            if (identity := dataset.identity()) not in seen:
                seen.add(identity)
                _show(pretrained, dataset, name=name, most=most, found=found)
        except ClipxError as error:
            log.warning("%s is left out: %s", name, error)
            found.parts.append(paragraph(f"{name} is left out: {error}"))
    return found


def _openings(
    sets: Mapping[str, EvaluateConfig], folders: Sequence[Path]
) -> Iterator[tuple[str, Callable[[], AnySet]]]:
    for name, config in sets.items():
        yield name, lambda config=config: _open(config)  # type: ignore[misc]
    for folder in folders:
        yield folder.name, lambda folder=folder: open_set(str(folder))  # type: ignore[misc]


def _open(config: EvaluateConfig) -> AnySet:
    match config:
        case ZeroShotConfig():
            return open_classes(config.data, split=config.split)
        case RetrievalConfig() | HeldOutLossConfig():
            return open_retrieval(
                config.data, image_key=config.image_key, caption_key=config.caption_key, split=config.split
            )
        case _:
            assert_never(config)


def _show(pretrained: Pretrained, dataset: AnySet, *, name: str, most: int, found: Pictures) -> None:
    looked_at = look(pretrained, dataset, name=name, most=most)
    found.sizes[name] = SetSize(looked_at.num_pictures, looked_at.num_captions)
    match dataset:
        case ClassificationSet():
            found.parts.extend([confusions(guess(pretrained, looked_at, dataset)), embedding_map(looked_at)])
        case RetrievalSet():
            captions = retrieve(pretrained, looked_at)
            found.parts.extend([retrieved(captions), embedding_map(looked_at, captions.text_MD)])
        case MultiLabelSet():
            found.parts.append(embedding_map(looked_at))
        case _:
            assert_never(dataset)


def _device(run: Recorded) -> str:
    """A GPU only where no training can be on it: what it has left may be little."""
    import torch

    return "cuda" if torch.cuda.is_available() and run.status else "cpu"
