"""Linear probe: logistic regression on the embeddings of a training part, measured on the test part.

What is compared are encoders, so nothing is left to choose by hand. The penalty is chosen by cross-validation on the
training part: C from 1e-6 to 1e6, the range of the CLIP paper (arXiv:2103.00020, appendix A.3), by decades from the
strongest penalty on, each fit starting at the one before; two decades in a row that are no better end the walk; then
half a decade to both sides of the best. What decides is how many images of held-out folds are classified rightly; of
equal ones the smaller C. The last fit takes all training images. Embeddings stay as they are, of unit length:
standardised ones were no better (benchmarks/LOG.md).

With `shots`, n images of each class train, as often as there are seeds. Which ones is a hash of seed and place in the
set; n + 1 images of a seed contain its n images.

Ranks share the folds; the figures are the same for any number of them, because folds are counted in whole images.

Shapes: N images, K classes that have training images, D embedding, B images of a block.
"""

from collections.abc import Sequence
from statistics import mean, stdev

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from clipx.counter_random import Stream, fold, start
from clipx.distributed.collectives import all_reduce, gather_objects, rank, world_size
from clipx.errors import InputError
from clipx.evaluate.features import Features
from clipx.evaluate.labels import TwoParts, two_parts
from clipx.evaluate.logistic import EXACT, ROUGH, Classifier, Examples, LogisticRegression
from clipx.evaluate.options import Evaluation
from clipx.evaluate.zero_shot import accuracies, num_classes_above

OPTION = "--probe"
_DECADES = tuple(range(-6, 7))
_HALVES = (-1, 1)
_NO_BETTER = 2
"""So many decades in a row that are no better end the walk, once one was better than the strongest penalty."""
_FOLDS = 5
_MANY_IMAGES = 20_000
"""Of more training images one fold is held out, a fifth of them; it decides to half a percent."""
_ONE_SHOT = 1e3
"""C where no class has an image to hold out: of little weight, as few images can be separated at any penalty; best of
the decades on wds_clothing within the noise (benchmarks/LOG.md)."""
_ROWS = 4096  # of a block of test images


def linear_probe(
    train: Features,
    test: Features,
    *,
    class_names: Sequence[str],
    resamples: int = 0,
    device: torch.device | None = None,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Trains on one part and measures on the other; every rank of `group` must call it with equal parts.

    Args:
        class_names: of the set.
        resamples: of the test images, for intervals.
        device: computes in float64; the CPU by default.

    Returns:
        `probe_acc1`, `probe_acc5` and `probe_mean_per_class_recall`, as `zero_shot` has them; derived is `probe_C`. The
        same on all ranks.

    Raises:
        InputError: the parts do not fit each other (`two_parts`).
    """
    parts = two_parts(train, test, class_names=class_names, option=OPTION)
    best, above_N = _Prober(parts, device=device, group=group).measure(np.arange(len(parts.train_N)))
    found, drawn = accuracies(parts.test_N, above_N, num_classes=parts.num_classes, resamples=resamples)
    return Evaluation(
        task="linear_probe",
        metrics={f"probe_{name}": value for name, value in found.items()},
        derived={"probe_C": best},
        resampled={f"probe_{name}": values_R for name, values_R in drawn.items()},
    )


def few_shot_probe(
    train: Features,
    test: Features,
    *,
    class_names: Sequence[str],
    shots: Sequence[int],
    num_seeds: int,
    device: torch.device | None = None,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Trains on a few images of each class, as often as there are seeds; called as `linear_probe`.

    Args:
        class_names: of the set.
        shots: training images per class, one or several numbers of them.
        num_seeds: choices of these images.
        device: computes in float64; the CPU by default.

    Returns:
        `probe_N_shot_acc1`, the mean over seeds; derived are the other figures, and with `_std` the standard deviation
        of each between seeds if there are several. The same on all ranks.

    Raises:
        InputError: the parts do not fit each other (`two_parts`), or a class has fewer training images than shots.
    """
    parts = two_parts(train, test, class_names=class_names, option=OPTION)
    if max(shots) > parts.smallest:
        raise InputError(
            f"--shots {max(shots)}: class {parts.smallest_name!r} has {parts.smallest} training images; ask for fewer"
        )
    prober = _Prober(parts, device=device, group=group)
    metrics: dict[str, float] = {}
    derived: dict[str, float] = {}
    for num_shots in dict.fromkeys(shots):
        runs = []
        for seed in range(num_seeds):
            _, above_N = prober.measure(choose_shots(parts.train_N, num_shots, seed=seed))
            runs.append(accuracies(parts.test_N, above_N, num_classes=parts.num_classes)[0])
        for figure in runs[0]:
            name, values = f"probe_{num_shots}_shot_{figure}", [run[figure] for run in runs]
            (metrics if figure == "acc1" else derived)[name] = mean(values)
            if num_seeds > 1:
                derived[f"{name}_std"] = stdev(values)
    return Evaluation(task="few_shot_probe", metrics=metrics, derived=derived)


def choose_shots(label_N: NDArray[np.int64], num_shots: int, *, seed: int) -> NDArray[np.int64]:
    """The places of `num_shots` images of each class, ascending."""
    return np.nonzero(_places_in_class(label_N, start(seed, Stream.SHOTS)) < num_shots)[0]


def choose_folds(label_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each image the fold in which it is held out, 0 to 4, or -1: never, as it is the only one of its class.

    Folds have equal shares of every class, up to one image. Where a class begins is hashed, too, or small classes would
    all be in the first folds.
    """
    bits = start(0, Stream.FOLD)
    begin_N = fold(bits, label_N, -1) % _FOLDS
    fold_N = (_places_in_class(label_N, bits) + begin_N) % _FOLDS
    return np.where(np.bincount(label_N)[label_N] > 1, fold_N, -1)


def _places_in_class(label_N: NDArray[np.int64], bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each image's place among those of its class, in the order of their hashes."""
    order_N = np.lexsort((fold(bits, np.arange(len(label_N))), label_N))
    sorted_N = label_N[order_N]
    place_N = np.empty(len(label_N), np.int64)
    place_N[order_N] = np.arange(len(label_N)) - np.searchsorted(sorted_N, sorted_N)
    return place_N


class _Prober:
    """Fits and measures on two parts."""

    def __init__(self, parts: TwoParts, *, device: torch.device | None, group: ProcessGroup | None) -> None:
        self.parts, self._group = parts, group
        self._device = device or torch.device("cpu")

    def measure(self, chosen_N: NDArray[np.int64]) -> tuple[float, NDArray[np.int64]]:
        """C by cross-validation, and for each test image the number of classes before its own, as rank 0 found it.

        Args:
            chosen_N: the places of the training images that count, ascending.
        """
        fold_N = choose_folds(self.parts.train_N[chosen_N])
        best = _ONE_SHOT
        if (fold_N >= 0).any():
            num_folds = _FOLDS if len(chosen_N) <= _MANY_IMAGES else 1
            out = [fold_N == number for number in self._own(num_folds)]
            best = self._search([self._held_out(chosen_N, out_N) for out_N in out if out_N.any()])
        classifier = self._regression(chosen_N).fit(best, tolerance=EXACT)
        above_N = self._above(classifier, Examples(self.parts.test_ND, self.parts.test_N, device=self._device))
        return best, gather_objects(above_N, self._group)[0]

    def _own(self, num_folds: int) -> range:
        """The folds of this rank."""
        return range(rank(self._group), num_folds, world_size(self._group))

    def _search(self, held_out: "list[_HeldOut]") -> float:
        """The C that is right most often; all ranks take the same steps."""
        decades: dict[float, int] = {}
        for exponent in _DECADES:
            decades[10.0**exponent] = self._num_right(held_out, 10.0**exponent)
            first, *later = decades.values()
            if max(decades.values()) > first and max(later[-_NO_BETTER:]) <= max(later[:-_NO_BETTER], default=-1):
                break
        best = max(decades, key=lambda value: decades[value])  # the first of equal ones
        tried = dict(decades)
        for item in held_out:
            item.back_to(best)
        for half in _HALVES:
            value = best * 10 ** (half / 2)
            tried[value] = self._num_right(held_out, value)
        return max(sorted(tried), key=lambda value: tried[value])

    def _num_right(self, held_out: "list[_HeldOut]", inverse_penalty: float) -> int:
        right = 0
        for item in held_out:
            classifier = item.fit(inverse_penalty)
            right += int((self._above(classifier, item.examples) < 1).sum())
        return int(all_reduce(torch.tensor([right], device=self._device), "sum", self._group))

    def _held_out(self, chosen_N: NDArray[np.int64], out_N: NDArray[np.bool_]) -> "_HeldOut":
        return _HeldOut(self._regression(chosen_N[~out_N]), self._examples(chosen_N[out_N]))

    def _regression(self, chosen_N: NDArray[np.int64]) -> LogisticRegression:
        return LogisticRegression(self._examples(chosen_N), num_classes=self.parts.num_classes)

    def _examples(self, chosen_N: NDArray[np.int64]) -> Examples:
        whole = len(chosen_N) == len(self.parts.train_N)
        return Examples(
            self.parts.train_ND, self.parts.train_N, chosen_N=None if whole else chosen_N, device=self._device
        )

    def _above(self, classifier: Classifier, examples: Examples) -> NDArray[np.int64]:
        """For each example the number of classes before its own."""
        above = []
        for first in range(0, len(examples), _ROWS):
            last = min(first + _ROWS, len(examples))
            scores_BK = classifier.scores(examples.rows(first, last))
            above.append(num_classes_above(scores_BK, examples.label_N[first:last]).cpu().numpy())
        return np.concatenate(above)


class _HeldOut:
    """One fold: the regression on the others, and where its walk is."""

    def __init__(self, regression: LogisticRegression, examples: Examples) -> None:
        self.examples = examples
        self._regression = regression
        self._found: dict[float, Classifier] = {}
        self._last: Classifier | None = None

    def fit(self, inverse_penalty: float) -> Classifier:
        """Fits from where the walk is."""
        self._last = self._regression.fit(inverse_penalty, start=self._last, tolerance=ROUGH)
        self._found[inverse_penalty] = self._last
        return self._last

    def back_to(self, inverse_penalty: float) -> None:
        """Goes on from an earlier fit."""
        self._last = self._found[inverse_penalty]
