"""The learning rate as a pure function of the step: nothing to save, nothing that accelerate could step W times."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, num_steps: int, minimum: float = 0.0) -> float:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `minimum` (arXiv 1608.03983, equation 5, one cycle).

    Args:
        step: optimizer steps already taken; step 0 of a run with warm-up trains at peak / warmup_steps.
        peak: highest rate, reached after `warmup_steps`.
        warmup_steps: 0 for none.
        num_steps: length of the whole run.
        minimum: rate that the cosine would reach at `num_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))
