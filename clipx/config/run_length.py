"""How long a run is, and where it stands: in optimizer steps and in pairs, also where its batch changed size."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """Converts between steps and the pairs that a run has seen by then.

    The global batch has one size in a start of a run; a resume may change it (`data.allow_change`).
    """

    global_batch_size: int
    """Pairs of a step from the last change on."""
    steps: int | None
    """The run's length in steps; or `samples`, one of the two."""
    samples: int | None
    """Its length in pairs, rounded up to whole steps."""
    changes: tuple[tuple[int, int], ...] = ()
    """Steps done when the global batch changed its size, and pairs seen by then, ascending."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps or self.in_steps(self.samples or 0)

    def samples_seen(self, step: int) -> int:
        """Pairs seen after `step` steps."""
        first, seen, steps, pairs = self._stretch(bisect_right(self._knots, step, key=lambda knot: knot[0]))
        return seen + (step - first) * pairs // steps

    def in_steps(self, samples: int) -> int:
        """The number of steps after which at least `samples` pairs are seen."""
        first, seen, steps, pairs = self._stretch(bisect_left(self._knots, samples, key=lambda knot: knot[1]))
        return first - (seen - samples) * steps // pairs

    def in_batches(self, step: int) -> float:
        """Pairs seen after `step` steps, in batches of the present size; `step` itself if that never changed."""
        return self.samples_seen(step) / self.global_batch_size

    @property
    def _knots(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0), *self.changes)

    def _stretch(self, number: int) -> tuple[int, int, int, int]:
        """Where the stretch of one size begins, in steps and pairs, and pairs over steps in it."""
        number = max(number, 1)
        first, seen = self._knots[number - 1]
        if number == len(self._knots):
            return first, seen, 1, self.global_batch_size
        last, seen_then = self._knots[number]
        return first, seen, last - first, seen_then - seen
