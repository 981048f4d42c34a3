"""What is predicted without looking: the same for every row, from the facts of the training rows.

A class is as probable as it is frequent, so the most frequent one is predicted; a number is the mean (with the
transform `log` that of logarithms, the geometric mean); a label is as probable as it is frequent. A model that is no
better than this has learned nothing.
"""

import torch
from torch import Tensor

from clipx.config.fit import FitConfig
from clipx.config.fit_inputs import ClassTarget, LabelsTarget, NumberTarget, TargetConfig


def constant_outputs(config: FitConfig) -> Tensor:
    """The raw outputs that say so, float64 (1, O): those of all targets of a resolved config side by side."""
    outputs = [_outputs(target, num_train=config.data.num_train or 0) for target in config.targets.values()]
    return torch.cat(outputs)[None]


def _outputs(target: TargetConfig, *, num_train: int) -> Tensor:
    match target:
        case ClassTarget(counts=counts):
            return torch.tensor(counts or (), dtype=torch.float64).log()
        case NumberTarget():
            return torch.zeros(1, dtype=torch.float64)
        case LabelsTarget(counts=counts, num_rows=num_rows):
            # Of the rows that have the target; a config that was resolved by hand may not say how many.
            share_L = torch.tensor(counts or (), dtype=torch.float64) / max(num_rows or num_train, *(counts or ()))
            return share_L.logit(1e-6)
