"""The learning rate as a pure function of the step: a checkpoint need not save it."""

import logging
import math
from collections.abc import Callable
from typing import Literal, assert_never

from clipx.config.optim import OptimConfig
from clipx.config.run_length import RunLength
from clipx.errors import InputError

log = logging.getLogger(__name__)


def learning_rate(
    step: float,
    *,
    peak: float,
    warmup_steps: float,
    num_steps: float,
    minimum: float = 0.0,
    schedule: Literal["cosine", "constant"] = "cosine",
    cooldown_steps: float = 0,
) -> float:
    """The learning rate of a step: a linear warm-up from 0 to `peak`, then the schedule.

    cosine: half a cosine down to `minimum` (arXiv 1608.03983, equation 5, one cycle).
    constant: `peak`, then linearly down to `minimum` over the last `cooldown_steps` (arXiv 2405.18392, section 3, with
    the linear form of the cooldown).

    `step` counts the optimizer steps before this one: step 0 of a warm-up has the rate peak / warmup_steps. `minimum`
    is the rate that the cosine or the cooldown would reach at `num_steps`, the length of the whole run. Where the
    global batch has changed its size, all of them may be in pairs seen over the present size, and so be fractions.
    """
    if step < warmup_steps:
        return peak * min(step + 1, warmup_steps) / warmup_steps
    match schedule:
        case "cosine":
            progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
            return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))
        case "constant":
            remaining = min(1.0, (num_steps - step) / cooldown_steps) if cooldown_steps else 1.0
            return minimum + (peak - minimum) * remaining
        case unknown:
            assert_never(unknown)


def build_schedule(config: OptimConfig, length: RunLength) -> Callable[[int], float]:
    """Builds, from its config and the length of the run, the function from the step to its learning rate.

    A length that is given in pairs counts pairs seen: the run's own (`samples`), for the cosine and the cooldown, and
    the warm-up's. So a global batch of another size bends the curve over steps and leaves it as it is over pairs.

    Raises:
        InputError: a cooldown with another schedule than constant, a cooldown that is given twice or overlaps the
            warm-up, or a minimum above the peak.
    """
    warmup_steps, cooldown_steps = warmup_of(config, length), cooldown_of(config, length)
    _check(config, warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, num_steps=length.num_steps)
    place = float if length.samples is None else length.in_batches
    warmup_place = float if config.warmup_samples is None else length.in_batches
    warmup = warmup_steps if config.warmup_samples is None else -(-config.warmup_samples // length.global_batch_size)
    start, end = place(warmup_steps), place(length.num_steps)
    cooldown = end - place(length.num_steps - cooldown_steps)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return learning_rate(warmup_place(step), peak=config.lr, warmup_steps=warmup, num_steps=warmup)
        return learning_rate(
            place(step),
            peak=config.lr,
            warmup_steps=start,
            num_steps=end,
            minimum=config.min_lr,
            schedule=config.schedule,
            cooldown_steps=cooldown,
        )

    return rate


def warmup_of(config: OptimConfig, length: RunLength) -> int:
    """Optimizer steps of the warm-up."""
    return config.warmup_steps if config.warmup_samples is None else length.in_steps(config.warmup_samples)


def cooldown_of(config: OptimConfig, length: RunLength) -> int:
    """Optimizer steps of the cooldown: those after which fewer pairs than it has are left."""
    if config.cooldown_samples is None:
        return config.cooldown_steps
    before = length.samples_seen(length.num_steps) - config.cooldown_samples
    return length.num_steps - (length.in_steps(before + 1) - 1)


def _check(config: OptimConfig, *, warmup_steps: int, cooldown_steps: int, num_steps: int) -> None:
    if config.cooldown_steps and config.cooldown_samples is not None:
        raise InputError(
            f"optim.cooldown_steps={config.cooldown_steps} and optim.cooldown_samples={config.cooldown_samples}: "
            "give one of the two"
        )
    if cooldown_steps and config.schedule != "constant":
        raise InputError(
            f"a cooldown of {cooldown_steps} steps needs optim.schedule=constant, not {config.schedule}; "
            "set it or leave the cooldown out"
        )
    if cooldown_steps and warmup_steps + cooldown_steps > num_steps:
        raise InputError(
            f"a warm-up of {warmup_steps} and a cooldown of {cooldown_steps} steps overlap in a run of {num_steps}; "
            "shorten one of them (optim.warmup_steps, optim.cooldown_steps)"
        )
    if config.min_lr > config.lr:
        raise InputError(f"optim.min_lr={config.min_lr} is above optim.lr={config.lr}; lower the first")
    if warmup_steps > num_steps:  # well defined, and normal for a trial run of a few steps
        log.warning("the warm-up of %d steps is longer than the run of %d", warmup_steps, num_steps)
