"""What a person asks of `clipx average`, and its rules; imports no torch, so that a wrong number is said at once.

With `start` the result goes from there towards the models: (1 - alpha) start + alpha mean (WiSE-FT, arXiv 2109.01903,
equation 1). With `greedy` each model is taken in only where the score does not fall (model soups, arXiv 2203.05482,
recipe 1).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal

from clipx.errors import InputError
from clipx.export.folder import AVERAGE, require_own

Take = Literal["average", "trained"]

_MOST_ALPHAS = 1000


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """The models, how they are averaged, and by what the result is chosen.

    Raises:
        InputError: too few models, numbers that are no weights or no alphas, or choices that exclude each other.
    """

    models: tuple[Path, ...]
    """At least two, or with `start` one."""
    weights: tuple[float, ...] | None = None
    """One number for each model, whose sum need not be 1; None: equal ones."""
    start: Path | None = None
    """The model from which the result goes towards the mean of `models`."""
    alphas: tuple[float, ...] = ()
    """How far: 0 is `start`, 1 the mean. Of several, the one with the best mean score is taken."""
    extrapolate: bool = False
    """Whether alphas may lie outside 0 to 1."""
    greedy: bool = False
    """Whether a model is taken in only where the score does not fall."""
    on: tuple[Path, ...] = ()
    """Evaluation sets in CLIP_benchmark's layout, which choose among alphas or models."""
    take: Take | None = None
    """Of runs that kept an average of their weights (`ema`): which to take; None: the average."""
    batch_size: int = 256
    """Pictures or texts per forward pass of the evaluations."""

    def __post_init__(self) -> None:
        """Checks what stands in one field, then what the fields say together."""
        self._check_models()
        self._check_weights()
        self._check_alphas()
        self._check_sets()

    def _check_models(self) -> None:
        if self.greedy and self.start is not None:
            raise InputError("--greedy chooses among models, --with goes towards them; give one of the two")
        if len(self.models) < 2 and self.start is None:
            purpose = "nothing to choose from" if self.greedy else "no average"
            raise InputError(f"{len(self.models)} MODEL has {purpose}; give several, or one and --with START")

    def _check_weights(self) -> None:
        if self.weights is None:
            return
        if self.greedy:
            raise InputError("--greedy gives all models that it takes in one weight; leave out --weights")
        listed = _listed(self.weights)
        if len(self.weights) != len(self.models):
            raise InputError(
                f"--weights {listed}: {len(self.weights)} numbers for {len(self.models)} models; give one for each"
            )
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise InputError(f"--weights {listed}: they must be numbers of at least 0, and not all 0")

    def _check_alphas(self) -> None:
        if self.start is None and self.alphas:
            raise InputError("--alpha and --alphas go from a model towards others; name it by --with START")
        if self.start is not None and not self.alphas:
            raise InputError("--with says where to start, not how far to go; give --alpha A, or --alphas and --on")
        for alpha in self.alphas:
            if not math.isfinite(alpha):
                raise InputError(f"alpha {alpha:g} is no number; 0 is START, 1 the tuned model")
            if not (0 <= alpha <= 1 or self.extrapolate):
                raise InputError(f"alpha {alpha:g} lies outside 0 to 1; to go beyond the two ends give --extrapolate")

    def _check_sets(self) -> None:
        what = "--greedy" if self.greedy else "--alphas" if len(self.alphas) > 1 else None
        if what and not self.on:
            raise InputError(f"{what} needs something to choose by; give evaluation sets by --on DATASET_DIR")
        if self.on and not what:
            raise InputError(
                "--on chooses, among several --alphas or by --greedy, and there is no choice; measure an average by "
                "`clipx zeroshot`"
            )


def require_place(options: AverageOptions, to: Path) -> None:
    """Checks that an average may be written to a folder.

    Raises:
        InputError: it is one of the models, or holds what no average wrote.
        OSError: it cannot be read.
    """
    for path in (*options.models, *([options.start] if options.start else [])):
        if path.resolve() == to.resolve():
            raise InputError(f"--to {to} is one of the models, and would be lost; name another folder")
    require_own(to, AVERAGE)


def read_weights(text: str) -> tuple[float, ...]:
    """The numbers of `1,2,1`.

    Raises:
        InputError: something else.
    """
    return tuple(float(_number(part, option="--weights")) for part in text.split(","))


def read_alphas(text: str) -> tuple[float, ...]:
    """The numbers of `0,0.25,1`, or of `0,0.1,...,1`: on in the same steps up to the last. Repeated ones count once.

    Raises:
        InputError: something else, steps that miss the last number, or more than 1,000 numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers: list[Decimal] = []
    for index, part in enumerate(parts):
        if part in ("...", "…"):
            beside = parts[index - 2 : index] + parts[index + 1 : index + 2] if index >= 2 else []
            if len(beside) != 3:
                raise InputError(f"--alphas {text}: `...` stands between two numbers and the last, as in 0,0.1,...,1")
            first, second, last = (_number(number, option="--alphas") for number in beside)
            numbers += _between(first, second, last, text=text)
        else:
            numbers.append(_number(part, option="--alphas"))
    return tuple(dict.fromkeys(map(float, numbers)))


def _between(first: Decimal, second: Decimal, last: Decimal, *, text: str) -> Iterator[Decimal]:
    """The numbers after `second` and before `last`, in steps of second - first; exact, as decimals."""
    if not all(number.is_finite() for number in (first, second, last)):
        raise InputError(f"--alphas {text}: no steps lead to what is no number; change it")
    step = second - first
    count = (last - second) / step if step else Decimal(0)
    if count != count.to_integral_value() or count < 1:
        raise InputError(f"--alphas {text}: steps of {step} do not come from {second} to {last}; change one of them")
    if count > _MOST_ALPHAS:
        raise InputError(f"--alphas {text}: {count:f} numbers; give at most {_MOST_ALPHAS:,}")
    return (second + number * step for number in range(1, int(count)))


def _number(text: str, *, option: str) -> Decimal:
    try:
        return Decimal(text.strip())
    except InvalidOperation as error:
        raise InputError(f"{option}: {text.strip()[:80]!r} is no number; give some, joined by commas") from error


def _listed(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
