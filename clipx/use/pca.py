"""Principal components of embeddings, fitted to them as they stream by.

Pictures and texts have one set of components, so that both can be compared; each kind is centred by a mean of its own,
for CLIP's pictures and texts lie apart, and the first component would be spent on the way between them. What is
projected has unit length again: a product of two is a cosine, as it was before.

Shapes: B rows, D embedding, K components.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx.errors import InputError

_KINDS = ("image", "text")


@dataclass(frozen=True, eq=False)
class PCA:
    """A projection to the directions in which embeddings vary most."""

    components_KD: np.ndarray
    """float64, orthonormal rows, those of the largest variance first; the largest entry of each is positive."""
    means: Mapping[str, np.ndarray]
    """float64 (D,), of "image" and "text"; zeros for a kind that there was none of."""
    variance_K: np.ndarray
    """float64, of the components."""
    total_variance: float
    """Of all D directions."""

    @property
    def explained_variance(self) -> float:
        """The share of the variance that the components keep."""
        return float(self.variance_K.sum() / self.total_variance) if self.total_variance else 1.0

    def project(self, x_BD: np.ndarray, kind: str) -> np.ndarray:
        """Projects embeddings of a kind: float32 (B, K), unit length; rows of zeros stay zeros."""
        x_BD = np.asarray(x_BD, np.float64)
        projected_BK = _product(x_BD - self.means[kind], self.components_KD.T)
        projected_BK[~x_BD.any(axis=1)] = 0
        length_B1 = np.linalg.norm(projected_BK, axis=1, keepdims=True)
        return (projected_BK / np.where(length_B1 > 0, length_B1, 1)).astype(np.float32)

    def encoded(self) -> bytes:
        """The content of pca.npz."""
        out = io.BytesIO()
        np.savez(
            out,
            components=self.components_KD,
            image_mean=self.means["image"],
            text_mean=self.means["text"],
            variance=self.variance_K,
            total_variance=np.float64(self.total_variance),
        )
        return out.getvalue()

    @classmethod
    def load(cls, path: Path) -> "PCA":
        """Reads a file that `encoded` made.

        Raises:
            InputError: it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                means = {kind: file[f"{kind}_mean"] for kind in _KINDS}
                return cls(file["components"], means, file["variance"], float(file["total_variance"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); embed again") from error


@dataclass
class Moments:
    """Sums over embeddings of one kind, in float64."""

    count: int = 0
    sum_D: Any = 0.0
    products_DD: Any = 0.0
    """The sum of each row's outer product with itself."""

    def add(self, x_BD: np.ndarray) -> None:
        """Takes in some rows; those of zeros are none."""
        x_BD = np.asarray(x_BD, np.float64)
        x_BD = x_BD[x_BD.any(axis=1)]
        self.count += len(x_BD)
        self.sum_D = self.sum_D + x_BD.sum(axis=0)
        self.products_DD = self.products_DD + _product(x_BD.T, x_BD)


@dataclass
class Fit:
    """Fits a `PCA` to embeddings that are given part by part; the order of parts decides the last bits."""

    moments: dict[str, Moments] = field(default_factory=lambda: {kind: Moments() for kind in _KINDS})

    def add(self, parts: Iterable[np.ndarray], kind: str) -> None:
        """Takes in embeddings (B, D) of a kind."""
        for x_BD in parts:
            self.moments[kind].add(x_BD)

    def result(self, components: int, *, embed_dim: int) -> PCA:
        """The K components.

        Raises:
            InputError: there are more of them than dimensions, or fewer rows.
        """
        count = sum(moments.count for moments in self.moments.values())
        if not 0 < components <= embed_dim:
            raise InputError(
                f"--reduce pca:{components}: the model's embeddings have {embed_dim} dimensions; ask for fewer"
            )
        if count <= components:
            raise InputError(f"--reduce pca:{components} needs more than {components} embeddings, and here are {count}")
        means, scatter_DD = {}, np.zeros((embed_dim, embed_dim))
        for kind, moments in self.moments.items():
            means[kind] = moments.sum_D / moments.count if moments.count else np.zeros(embed_dim)
            if moments.count:
                scatter_DD += moments.products_DD - moments.count * np.outer(means[kind], means[kind])
        # torch's, whose number of threads this process has set, which numpy's library does not ask
        values_D, vectors_DD = (x.numpy() for x in torch.linalg.eigh(torch.from_numpy(scatter_DD / count)))
        variance_D = np.maximum(values_D[::-1], 0)
        components_KD = vectors_DD.T[::-1][:components].copy()
        signs_K = np.sign(components_KD[np.arange(components), np.abs(components_KD).argmax(axis=1)])
        return PCA(components_KD * signs_K[:, None], means, variance_D[:components], float(variance_D.sum()))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (torch.from_numpy(np.ascontiguousarray(a)) @ torch.from_numpy(np.ascontiguousarray(b))).numpy()
