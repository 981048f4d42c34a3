"""How a set is evaluated, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Like = Literal["clip_benchmark"]
Decode = Literal["pil", "fast"]
Task = Literal["zeroshot_classification", "zeroshot_retrieval", "zeroshot_multilabel_classification"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The settings of an evaluation that do not come from the set."""

    batch_size: int = 256
    """Images or texts per forward pass."""
    like: Like | None = None
    """Give CLIP_benchmark's figures where clipx's differ on purpose (`retrieval`, `zero_shot`, `multi_label`)."""
    cache: Path | None = None
    """Folder of kept features; None neither looks nor keeps."""
    decode: Decode = "pil"
    """How images become pixels (`Pretrained.pixels`)."""
    resamples: int = 0
    """How often the images are resampled for the intervals (`bootstrap`); 0: no intervals."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of a model on a set."""

    task: Task
    metrics: dict[str, float]
    """By name, shares from 0 to 1."""
    resampled: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By name what each resample has, in their order; more names than metrics, or fewer."""

    def interval(self, name: str) -> tuple[float, float] | None:
        """From and to, the 2.5 and 97.5 percentiles of the resamples; None where they are not known."""
        values = self.resampled.get(name)
        if values is None or not len(values) or not np.isfinite(values).all():
            return None
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)
