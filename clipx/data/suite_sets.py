"""The sets that a command evaluates: those of a suite, or folders by themselves; which of them are here.

Looking needs no torch, and no image is read, so what is missing is said at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.config.paths import expand_home
from clipx.config.suite import SetType, SuiteConfig
from clipx.data.labelled import AnySet, ClassificationSet, open_set, type_of
from clipx.errors import InputError
from clipx.storage.files import is_local

METRICS: dict[SetType, tuple[str, ...]] = {
    "classification": ("acc1", "acc5", "mean_per_class_recall", "F1-macro_all"),
    "retrieval": tuple(
        f"{way}_recall@{depth}"
        for way in ("mean", "image_to_text", "text_to_image", "text_retrieval", "image_retrieval")
        for depth in (1, 5, 10)
    ),
    "multilabel": ("mean_average_precision",),
}
"""What can stand for a set, by its type; the first if nothing else is asked for. CLIP_benchmark's names are known."""
_ENDING = "_test"  # of DataComp's folders; CLIP_benchmark's have none


@dataclass(frozen=True, kw_only=True)
class SetPlace:
    """A set that is wanted."""

    key: str
    """What results call it."""
    title: str
    """What tables call it."""
    path: str
    """As `open_set` takes it."""
    split: str = "test"
    type: SetType | None = None
    """What it must be; None: whatever it is."""
    main_metric: str | None = None
    """The figure that stands for it; None: the first of `METRICS`."""
    in_suite: bool = False
    """Whether the key is the suite's; else it is the path."""

    def opened(self, *, every_line: bool = False) -> AnySet:
        """The set.

        Raises:
            InputError: it is not here, is broken or of another type, or has no such main metric.
        """
        opened = open_set(self.path, split=self.split, every_line=every_line)
        kind = type_of(opened)
        if self.type not in (None, kind):
            raise InputError(f"{self.path} is a {kind} set, not a {self.type} set as {self.key} must be")
        if self.main_metric not in (None, *METRICS[kind]):
            known = ", ".join(METRICS[kind][:4])
            raise InputError(
                f"{self.key}: clipx does not compute {self.main_metric}, its main metric (of a {kind} set it computes "
                f"{known})"
            )
        return opened

    def training_part(self, opened: AnySet) -> ClassificationSet | None:
        """The training part of a set that is open; None for a set without one class per image.

        Raises:
            InputError: it is not here, is the part that is measured, or has other classes.
        """
        if not isinstance(opened, ClassificationSet):
            return None
        try:
            train = open_set(self.path, split="train")
        except InputError as error:
            raise InputError(f"--probe and --knn need a training part: {error}") from error
        if train.split == opened.split:
            raise InputError(f"{self.path}: the part to measure is the training part; name another with --split")
        if not isinstance(train, ClassificationSet) or train.class_names != opened.class_names:
            raise InputError(f"{self.path}: its training part has other classes than its {opened.split} part")
        return train


def places_of(paths: Sequence[str], *, split: str = "test") -> list[SetPlace]:
    """Sets that are named one by one."""
    return [SetPlace(key=path, title=Path(path).absolute().name, path=path, split=split) for path in paths]


def suite_places(suite: SuiteConfig, data_root: Path | None) -> list[SetPlace]:
    """The sets of a suite; relative paths are below `data_root` if it is given."""
    return [
        SetPlace(
            key=key,
            title=wanted.title or key,
            path=_placed(wanted.data, data_root),
            split=wanted.split,
            type=wanted.type,
            main_metric=wanted.main_metric,
            in_suite=True,
        )
        for key, wanted in suite.sets.items()
    ]


def _placed(data: str, data_root: Path | None) -> str:
    if data_root is None or not is_local(data):
        return data
    path = data_root / expand_home(data)
    without = path.with_name(path.name.removesuffix(_ENDING))
    return str(without if without.exists() and not path.exists() else path)


def faults(places: Sequence[SetPlace], *, training: bool = False) -> dict[str, str]:
    """By key the sets that cannot be evaluated, each with the reason.

    Args:
        training: the training part is needed, too.
    """
    found = {}
    for place in places:
        try:
            opened = place.opened()
            if training:
                place.training_part(opened)
        except InputError as error:
            found[place.key] = str(error)
    return found


def without(places: Sequence[SetPlace], missing: Mapping[str, str], *, skip_missing: bool) -> list[SetPlace]:
    """The sets that can be evaluated.

    Args:
        missing: see `faults`.
        skip_missing: some may be missing, but not all.

    Raises:
        InputError: one is missing that must not be; the message has a line for each.
    """
    left = [place for place in places if place.key not in missing]
    if missing and (not skip_missing or not left):
        lines = list(missing.values())
        if left and (len(lines) > 1 or places[0].in_suite):
            lines.append(f"{len(missing)} of {len(places)} sets are missing; --skip-missing evaluates the others")
        raise InputError("\n".join(lines))
    return left
