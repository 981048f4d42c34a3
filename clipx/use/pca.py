"""Principal components of embeddings, fitted to them as they stream by.

Pictures and texts have one set of components, so that both can be compared; each kind is centred by a mean of its own,
for CLIP's pictures and texts lie apart, and the first component would be spent on the way between them. What is
projected has unit length again: a product of two is a cosine, as it was before.

Shapes: B rows, D embedding, K components.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

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
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}); embed again") from error


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over embeddings of one kind, in float64."""

    count: int
    sum_D: np.ndarray
    products_DD: np.ndarray
    """The sum of each row's outer product with itself."""

    @classmethod
    def of(cls, x_BD: np.ndarray) -> "Moments":
        """Those of some embeddings; rows of zeros are none."""
        x_BD = np.asarray(x_BD, np.float64)
        x_BD = x_BD[x_BD.any(axis=1)]
        return cls(len(x_BD), x_BD.sum(axis=0), _product(x_BD.T, x_BD))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.count + other.count, self.sum_D + other.sum_D, self.products_DD + other.products_DD)


def encoded_moments(moments: Mapping[str, Moments]) -> bytes:
    """The moments of each kind as a file."""
    out = io.BytesIO()
    arrays = {f"{kind}_{name}": value for kind, of_kind in moments.items() for name, value in vars(of_kind).items()}
    np.savez(out, **arrays)
    return out.getvalue()


def read_moments(path: Path) -> dict[str, Moments]:
    """What `encoded_moments` made."""
    with np.load(path, allow_pickle=False) as file:
        kinds = [kind for kind in _KINDS if f"{kind}_count" in file]
        return {
            kind: Moments(int(file[f"{kind}_count"]), file[f"{kind}_sum_D"], file[f"{kind}_products_DD"])
            for kind in kinds
        }


def fit(moments: Mapping[str, Moments], components: int, *, embed_dim: int) -> PCA:
    """The K directions in which embeddings with these moments vary most.

    Raises:
        InputError: there are more of them than dimensions, or too few embeddings.
    """
    import torch

    count = sum(of_kind.count for of_kind in moments.values())
    require_components(components, embed_dim=embed_dim, count=count)
    means, scatter_DD = {kind: np.zeros(embed_dim) for kind in _KINDS}, np.zeros((embed_dim, embed_dim))
    for kind, of_kind in moments.items():
        if of_kind.count:
            means[kind] = of_kind.sum_D / of_kind.count
            scatter_DD += of_kind.products_DD - of_kind.count * np.outer(means[kind], means[kind])
    # torch's, whose number of threads is one here: numpy's library has a number of its own, and other last bits
    values_D, vectors_DD = (x.numpy() for x in torch.linalg.eigh(torch.from_numpy(scatter_DD / count)))
    variance_D = np.maximum(values_D[::-1], 0)
    components_KD = vectors_DD.T[::-1][:components].copy()
    signs_K = np.sign(components_KD[np.arange(components), np.abs(components_KD).argmax(axis=1)])
    return PCA(components_KD * signs_K[:, None], means, variance_D[:components], float(variance_D.sum()))


def require_components(components: int, *, embed_dim: int, count: int) -> None:
    """Checks that so many components can be fitted to `count` embeddings.

    Raises:
        InputError: there are more of them than dimensions, or too few embeddings.
    """
    if not 0 < components <= embed_dim:
        raise InputError(f"--reduce pca:{components}: embeddings of this model have {embed_dim} numbers; ask for fewer")
    if count <= components:
        raise InputError(
            f"--reduce pca:{components} needs more than {components} embeddings, and here are {count}; "
            "ask for fewer components, in a new folder"
        )


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch  # here, so that embeddings are read without it

    return (torch.from_numpy(np.ascontiguousarray(a)) @ torch.from_numpy(np.ascontiguousarray(b))).numpy()
