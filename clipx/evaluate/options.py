"""How a set is evaluated, and what comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Like = Literal["clip_benchmark"]
Decode = Literal["pil", "fast"]
Task = Literal[
    "zeroshot_classification",
    "zeroshot_retrieval",
    "zeroshot_multilabel_classification",
    "linear_probe",
    "few_shot_probe",
    "knn",
    "supervised",
    "held_out_loss",
]


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
    probe: bool = False
    """Also train a linear probe on the training part of sets with one class per image (`probe`)."""
    shots: tuple[int, ...] = ()
    """Images per class of further probes."""
    num_seeds: int = 3
    """Choices of these images."""
    neighbours: int | None = None
    """Also classify by so many nearest training images (`knn`)."""

    @property
    def needs_training_part(self) -> bool:
        """Whether a set's training part is read, too."""
        return self.probe or self.neighbours is not None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of a model on a set."""

    task: Task
    metrics: dict[str, float]
    """By name; all but losses are shares from 0 to 1."""
    derived: dict[str, float] = field(default_factory=dict)
    """Further figures that a suite may ask for (`clipx.data.suite_sets.METRICS`)."""
    resampled: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By name what each resample has, in their order; not all figures have intervals."""
    note: str = ""
    """What a person should know beside the figures."""

    def figure(self, name: str) -> float:
        """A metric, or a derived figure, also by CLIP_benchmark's name."""
        return (self.derived | self.metrics)[own_name(name)]

    def interval(self, name: str) -> tuple[float, float] | None:
        """From and to, the 2.5 and 97.5 percentiles of the resamples; None where they are not known."""
        values = self.resampled.get(own_name(name))
        if values is None or not len(values) or not np.isfinite(values).all():
            return None
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)


_THEIR_NAMES = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval", "probe": "lp"}


def own_name(name: str) -> str:
    """The name of a figure here, from CLIP_benchmark's."""
    for ours, theirs in _THEIR_NAMES.items():
        name = name.replace(f"{theirs}_", f"{ours}_")
    return name


def their_name(name: str) -> str:
    """CLIP_benchmark's name of a figure, from the one here."""
    for ours, theirs in _THEIR_NAMES.items():
        name = name.replace(f"{ours}_", f"{theirs}_")
    return name
