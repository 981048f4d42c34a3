"""Multinomial logistic regression on embeddings, in float64, in bounded memory.

With labels y_i, rows x_i and the regularisation C of scikit-learn's LogisticRegression, whose coefficients it gives:

    minimum over W, b of   C sum_i -log softmax(W x_i + b)[y_i] + |W|^2 / 2

The intercept b is not penalised. Of two classes scikit-learn has one row of coefficients, W[1] - W[0], and penalises
half its square; so |W|^2 counts twice then.

What is minimised is the mean loss, in coordinates where its curvature is near the identity: rows minus their mean m,
and W = U R^-1 with R R^T = S / K + I / (C N), S the covariance and K the number of classes. S / K bounds the curvature
where all classes are as likely, which is where a search starts. Rows of unit length have covariances that differ by
factors of a thousand between directions; without these coordinates L-BFGS takes thousands of steps instead of tens
(benchmarks/LOG.md). m and S come of a part of the rows where there are many: they change the way, not the minimum.

Shapes: N rows, B rows of a block, D features, K classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipx.evaluate.lbfgs import minimize
from clipx.evaluate.mapped_rows import read_rows, take_rows

_BLOCK_ENTRIES = 2**20
"""Float64 numbers of a block's rows and scores, 8 MB."""
_RESIDENT_ENTRIES = 2**26
"""Rows of at most so many numbers, 512 MB in float64, are converted once and kept; of others, a block at a time. Where
a GPU computes, as many as half of its free memory takes."""
_SAMPLED_ROWS = 2**15
"""Rows of which mean and covariance are taken."""
_MAX_EVALUATIONS = 5_000

EXACT = 1e-9
"""Of the slope at the start; gives coefficients to seven digits or so."""
ROUGH = 1e-2
"""Enough to compare accuracies."""


class Examples:
    """Rows with labels, read block by block.

    Args:
        image_ND: float32, may be memory-mapped.
        label_N: int64.
        chosen_N: the rows that count, int64, ascending; None is all.
        device: where blocks are computed.
    """

    def __init__(
        self,
        image_ND: np.ndarray,
        label_N: np.ndarray,
        *,
        chosen_N: np.ndarray | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._image_ND, self._chosen_N = image_ND, chosen_N
        labels = label_N if chosen_N is None else label_N[chosen_N]
        self.device = device or torch.device("cpu")
        self.label_N = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(self.device)

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def num_features(self) -> int:
        """Numbers in a row."""
        return int(self._image_ND.shape[1])

    def rows(self, first: int, last: int, *, every: int = 1) -> Tensor:
        """Rows `first` to `last`, float64."""
        if self._chosen_N is None and every == 1:
            rows = read_rows(self._image_ND, first, last)
        else:
            index = np.arange(first, last, every)
            rows = take_rows(self._image_ND, index if self._chosen_N is None else self._chosen_N[index])
        return torch.from_numpy(rows).to(self.device).double()


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A linear classifier."""

    weight_KD: Tensor
    bias_K: Tensor
    converged: bool
    evaluations: int

    def scores(self, rows_BD: Tensor) -> Tensor:
        """float64 (B, K), higher is likelier."""
        return torch.addmm(self.bias_K, rows_BD.to(self.weight_KD), self.weight_KD.T)


class LogisticRegression:
    """The objective of a set of examples, to be minimised for one C after another.

    Args:
        examples: every class below `num_classes` that has no row gets an intercept that goes to minus infinity; callers
            leave such classes out.
        num_classes: at least 2.
    """

    def __init__(self, examples: Examples, *, num_classes: int) -> None:
        self._examples, self._num_classes = examples, num_classes
        num_rows = len(examples)
        count_K = torch.bincount(examples.label_N, minlength=num_classes).double()
        log_K = count_K.clamp_min(0.5).log()
        self._bias_K = log_K - log_K.mean()  # the best one where W is zero
        sample_SD = self._sample()
        self._mean_D = sample_SD.mean(0)
        centred_SD = sample_SD - self._mean_D
        self._covariance_DD = centred_SD.T @ centred_SD / len(centred_SD)
        self._block = max(64, _BLOCK_ENTRIES // (examples.num_features + num_classes))
        self._resident: list[Tensor] | None = None
        if num_rows * examples.num_features <= _resident_entries(examples.device):
            self._resident = list(self._read())
        no_weight_KD = torch.zeros(num_classes, examples.num_features, dtype=torch.float64, device=examples.device)
        _, self._slope_KD, _ = self._mean_loss(no_weight_KD, self._bias_K)

    def fit(self, inverse_penalty: float, *, start: Classifier | None = None, tolerance: float = EXACT) -> Classifier:
        """The classifier for one C.

        Args:
            inverse_penalty: scikit-learn's C.
            start: where the search begins, for example the classifier of the C before; without it where W is zero.
            tolerance: largest entry of the gradient in the coordinates above, as a part of that where W is zero.
        """
        num_features, num_classes = self._examples.num_features, self._num_classes
        penalty = (2 if num_classes == 2 else 1) / (inverse_penalty * len(self._examples))
        identity_DD = torch.eye(num_features, dtype=torch.float64, device=self._examples.device)
        root_DD = torch.linalg.cholesky(self._covariance_DD / num_classes + penalty * identity_DD)
        bias_scale = num_classes**0.5

        def natural(point_KE: Tensor) -> tuple[Tensor, Tensor]:
            """W and the intercept for centred rows."""
            weight_KD = torch.linalg.solve_triangular(root_DD, point_KE[:, :-1], upper=False, left=False)
            return weight_KD, point_KE[:, -1] * bias_scale

        def objective(point_KE: Tensor) -> tuple[float, Tensor]:
            weight_KD, bias_K = natural(point_KE)
            loss, gradient_KD, gradient_K = self._mean_loss(weight_KD, bias_K)
            gradient_KD += penalty * weight_KD
            value = loss + penalty / 2 * float(weight_KD.square().sum())
            return value, torch.cat([scaled(gradient_KD), gradient_K[:, None] * bias_scale], dim=1)

        def scaled(gradient_KD: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root_DD.T, gradient_KD, upper=True, left=False)

        point_KE = torch.zeros(num_classes, num_features + 1, dtype=torch.float64, device=self._examples.device)
        if start is None:
            point_KE[:, -1] = self._bias_K / bias_scale
        else:
            point_KE[:, :-1] = start.weight_KD @ root_DD
            point_KE[:, -1] = (start.bias_K + start.weight_KD @ self._mean_D) / bias_scale
        tolerance *= float(scaled(self._slope_KD).abs().max())
        minimum = minimize(objective, point_KE, tolerance=tolerance, max_evaluations=_MAX_EVALUATIONS)
        weight_KD, bias_K = natural(minimum.point)
        return Classifier(
            weight_KD=weight_KD,
            bias_K=bias_K - weight_KD @ self._mean_D,
            converged=minimum.converged,
            evaluations=minimum.evaluations,
        )

    def _mean_loss(self, weight_KD: Tensor, bias_K: Tensor) -> tuple[float, Tensor, Tensor]:
        """The mean cross-entropy and its gradients."""
        # The rows of a solved one do not lie side by side: products with it would take up to twenty times as long.
        weight_KD = weight_KD.contiguous()
        gradient_KD, gradient_K = torch.zeros_like(weight_KD), torch.zeros_like(bias_K)
        total = torch.zeros((), dtype=torch.float64, device=weight_KD.device)
        first = 0
        for rows_BD in self._resident or self._read():
            label_1B = self._examples.label_N[None, first : first + len(rows_BD)]
            # Classes go first: torch's softmax over ten numbers that lie side by side takes seven times as long.
            logp_KB = torch.addmm(bias_K[:, None], weight_KD, rows_BD.T).log_softmax(dim=0)
            total -= logp_KB.gather(0, label_1B).sum()
            error_KB = logp_KB.exp_()
            error_KB.scatter_add_(0, label_1B, error_KB.new_full(label_1B.shape, -1.0))
            gradient_KD.addmm_(error_KB, rows_BD)
            gradient_K += error_KB.sum(dim=1)
            first += len(rows_BD)
        return float(total) / first, gradient_KD / first, gradient_K / first

    def _sample(self) -> Tensor:
        """Rows at equal distances, read in pieces: what a piece touches of a mapped file counts as memory."""
        num_rows = len(self._examples)
        every = -(-num_rows // _SAMPLED_ROWS)
        pieces = range(0, num_rows, 1024 * every)
        return torch.cat(
            [self._examples.rows(first, min(first + 1024 * every, num_rows), every=every) for first in pieces]
        )

    def _read(self) -> Iterator[Tensor]:
        """Blocks of centred rows."""
        for first in range(0, len(self._examples), self._block):
            yield self._examples.rows(first, min(first + self._block, len(self._examples))) - self._mean_D


def _resident_entries(device: torch.device) -> int:
    """The most float64 numbers that are kept."""
    if device.type != "cuda":
        return _RESIDENT_ENTRIES
    return max(_RESIDENT_ENTRIES, torch.cuda.mem_get_info(device)[0] // 16)
