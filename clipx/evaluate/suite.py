"""Several models on several sets, and the mean of the sets' main figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from clipx.counter_random import Stream, fold, permutation, start
from clipx.data.labelled import ClassificationSet, type_of
from clipx.data.suite_sets import METRICS, SetPlace, faults, without
from clipx.distributed.collectives import gather_objects, raise_on_all_ranks
from clipx.evaluate.options import EvaluateOptions, Evaluation, own_name
from clipx.evaluate.run import evaluate_set
from clipx.evaluate.training_part import from_training_part
from clipx.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What a model has on a set."""

    place: SetPlace
    name: str
    """Of the set; with the part that was read, if that is not the test part."""
    main_metric: str
    evaluation: Evaluation
    further: tuple[Evaluation, ...] = ()
    """What a probe or neighbours have on the same images."""

    @property
    def main_figure(self) -> float:
        """The figure that stands for the set."""
        return self.evaluation.figure(self.main_metric)

    def by_task(self) -> list["SetResult"]:
        """One result for each evaluation, the set's own first; the others' main figures are their first."""
        own = replace(self, further=())
        others = [replace(own, evaluation=one, main_metric=next(iter(one.metrics))) for one in self.further]
        return [own, *others]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of the sets' main figures."""

    figure: float
    interval: tuple[float, float] | None
    """Of the sets that have one; as if images of different sets were drawn independently. None if a set has none."""


def present_places(
    places: Sequence[SetPlace], *, skip_missing: bool, group: ProcessGroup | None, training: bool = False
) -> tuple[list[SetPlace], dict[str, str]]:
    """The sets that can be evaluated on every rank, and the reasons why others cannot.

    Raises:
        InputError: some are missing though `skip_missing` does not allow it, or all are.
    """
    missing: dict[str, str] = {}
    for of_rank in gather_objects(faults(places, training=training), group):
        missing |= of_rank
    return without(places, missing, skip_missing=skip_missing), missing


def evaluate_sets(
    pretrained: Pretrained, places: Sequence[SetPlace], options: EvaluateOptions, *, group: ProcessGroup | None
) -> Iterator[SetResult]:
    """Yields the figures of one set after the other, the same on all ranks; every rank of `group` must iterate.

    Raises:
        InputError: an image, or what is known of it, is missing or wrong, or cannot be decoded.
    """
    for place in places:
        with raise_on_all_ranks(group):
            opened = place.opened(every_line=options.like is not None)
            train = place.training_part(opened) if options.needs_training_part else None
        with torch.no_grad():
            evaluation = evaluate_set(pretrained, opened, options, group)
            further: tuple[Evaluation, ...] = ()
            if isinstance(opened, ClassificationSet) and train is not None:
                further = from_training_part(pretrained, opened, train, options, group=group)
        main_metric = place.main_metric or METRICS[type_of(opened)][0]
        yield SetResult(place=place, name=opened.name, main_metric=main_metric, evaluation=evaluation, further=further)


def mean_of(results: Sequence[SetResult]) -> Mean:
    """The mean of main figures, each of which counts alike."""
    resampled = [result.evaluation.resampled.get(own_name(result.main_metric)) for result in results]
    known = [
        _shuffled(values_R, number)
        for number, values_R in enumerate(resampled)
        if values_R is not None and np.isfinite(values_R).all()
    ]
    interval = None
    if len(known) == len(results) and len({len(values_R) for values_R in known}) == 1:
        low, high = np.quantile(np.mean(known, axis=0), [0.025, 0.975])
        interval = float(low), float(high)
    return Mean(figure=float(np.mean([result.main_figure for result in results])), interval=interval)


def _shuffled(values_R: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """The resamples of a set in an order of its own: those of all sets come from the same random numbers."""
    bits = fold(start(number, Stream.BOOTSTRAP), 1)
    return values_R[permutation(bits, len(values_R))[0]]
