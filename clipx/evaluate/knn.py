"""Weighted nearest neighbours: classes of test images from the votes of the most similar training images.

The k training images nearest by cosine vote for their class, each with exp(similarity / T), T = 0.07 (Wu and others,
arXiv:1805.01978, section 3.4, with the T of DINO, arXiv:2104.14294, which uses k = 20). Of training images as similar
to the bit the earlier one is nearer. Classes without votes come last and count against the model, as do equal votes.

Tiles of training images are read one after another, whatever their number; nothing has the size of both parts. Tiles
do not depend on the number of ranks, which share the test images, so neither do the bits of their products.

Shapes: N test images, M training images, B of a test tile, T of a training tile, k neighbours, K classes, D embedding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.errors import InputError
from clipx.evaluate.features import Features
from clipx.evaluate.labels import two_parts
from clipx.evaluate.mapped_rows import read_rows
from clipx.evaluate.options import Evaluation
from clipx.evaluate.zero_shot import accuracies, num_classes_above

OPTION = "--knn"
TEMPERATURE = 0.07
_TEST, _TRAIN = 512, 8192  # a tile of similarities has 16 MB
_RESIDENT = 2**28  # bytes of training embeddings that are held as a whole


def nearest_neighbours(
    train: Features,
    test: Features,
    *,
    class_names: Sequence[str],
    k: int,
    resamples: int = 0,
    device: torch.device | None = None,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Measures the votes on the test part; every rank of `group` must call it with equal parts.

    Args:
        class_names: of the set.
        k: neighbours that vote.
        resamples: of the test images, for intervals.
        device: computes, in float32; the CPU by default.

    Returns:
        `knn_acc1`, `knn_acc5` and `knn_mean_per_class_recall`, as `zero_shot` has them; the same on all ranks.

    Raises:
        InputError: the parts do not fit each other (`two_parts`), or there are fewer training images than `k`.
    """
    parts = two_parts(train, test, class_names=class_names, option=OPTION)
    if not 1 <= k <= len(parts.train_N):
        raise InputError(f"{OPTION} {k}: the training part has {len(parts.train_N)} images; ask for 1 to as many")
    device = device or torch.device("cpu")
    label_M = torch.from_numpy(parts.train_N).to(device)
    above_N = torch.zeros(len(parts.test_N), dtype=torch.int64, device=device)
    resident = parts.train_ND.nbytes <= _RESIDENT
    train_MD = torch.from_numpy(read_rows(parts.train_ND, 0, len(parts.train_ND))).to(device) if resident else None
    for start in range(rank(group) * _TEST, len(above_N), world_size(group) * _TEST):
        stop = min(start + _TEST, len(above_N))
        test_BD = torch.from_numpy(read_rows(parts.test_ND, start, stop)).to(device)
        similarity_Bk, index_Bk = nearest(test_BD, parts.train_ND if train_MD is None else train_MD, k=k)
        vote_BK = votes(similarity_Bk, label_M[index_Bk], num_classes=parts.num_classes)
        label_B = torch.from_numpy(parts.test_N[start:stop]).to(device)
        above_N[start:stop] = num_classes_above(vote_BK, label_B)
    above_N = all_reduce(above_N, "sum", group)
    found, drawn = accuracies(parts.test_N, above_N.cpu().numpy(), num_classes=parts.num_classes, resamples=resamples)
    return Evaluation(
        task="knn",
        metrics={f"knn_{name}": value for name, value in found.items()},
        resampled={f"knn_{name}": values_R for name, values_R in drawn.items()},
    )


def nearest(test_BD: Tensor, train_MD: Tensor | NDArray[np.float32], *, k: int) -> tuple[Tensor, Tensor]:
    """The k most similar rows for each of some others, in no order of similarity.

    Args:
        test_BD: float32; its device computes.
        train_MD: float32, at least k rows; perhaps a mapped file, of which a tile at a time is in memory.

    Returns:
        Similarities, float32 (B, k), and row numbers, int64 (B, k), ascending in each row. Of rows as similar as the
        k-th the first ones.
    """
    kept_BC = test_BD.new_empty(len(test_BD), 0)
    index_BC = torch.empty(len(test_BD), 0, dtype=torch.int64, device=test_BD.device)
    for start in range(0, len(train_MD), _TRAIN):
        stop = min(start + _TRAIN, len(train_MD))
        rows = train_MD[start:stop] if isinstance(train_MD, Tensor) else read_rows(train_MD, start, stop)
        tile_TD = torch.as_tensor(rows).to(test_BD.device)
        with torch.autocast(test_BD.device.type, enabled=False):  # in bf16 similar images would tie
            similarity_BC = torch.cat([kept_BC, test_BD @ tile_TD.T], dim=1)
        place_Bk = _first_largest(similarity_BC, min(k, similarity_BC.shape[1]))
        num_kept = index_BC.shape[1]
        new_Bk = start + place_Bk - num_kept
        kept_BC = similarity_BC.gather(1, place_Bk)
        if num_kept:
            old_Bk = index_BC.gather(1, place_Bk.clamp_max(num_kept - 1))
            new_Bk = torch.where(place_Bk < num_kept, old_Bk, new_Bk)
        index_BC = new_Bk
    return kept_BC, index_BC


def _first_largest(value_BC: Tensor, k: int) -> Tensor:
    """The places of the k largest values of each row, ascending; torch's topk takes any of equal ones."""
    least_B1 = value_BC.topk(k, dim=1).values[:, -1:]
    larger_BC, equal_BC = value_BC > least_B1, value_BC == least_B1
    room_B1 = k - larger_BC.sum(dim=1, keepdim=True)
    chosen_BC = larger_BC | (equal_BC & (equal_BC.cumsum(dim=1) <= room_B1))
    return chosen_BC.nonzero()[:, 1].view(len(value_BC), k)


def votes(similarity_Bk: Tensor, label_Bk: Tensor, *, num_classes: int) -> Tensor:
    """The sum of exp(similarity / T) for each class, float64 (B, K), as a part of the nearest one's weight."""
    similarity_Bk = similarity_Bk.double()
    weight_Bk = ((similarity_Bk - similarity_Bk.amax(dim=1, keepdim=True)) / TEMPERATURE).exp()
    vote_BK = weight_Bk.new_zeros(len(label_Bk), num_classes)
    for label_B, weight_B in zip(label_Bk.T, weight_Bk.T, strict=True):  # one at a time: CUDA adds in any order
        vote_BK.scatter_add_(1, label_B[:, None], weight_B[:, None])
    return vote_BK
