"""Recall at 1, 5 and 10 between images and captions, in both directions.

A caption that several images share is one text, and correct for each of them; without shared captions the metrics are
CLIP_benchmark's. A query is a hit at k if fewer than k wrong candidates are at least as near as its nearest correct
one: ties count against the model.

Shapes: N images, M distinct texts, P pairs of the two, D embedding, Q queries and K candidates of a tile.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import CaptionedImage
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.sharing import embed_images, embed_texts, gather_shared
from clipx.pretrained import Pretrained

DEPTHS = (1, 5, 10)
_QUERIES, _CANDIDATES = 512, 8192  # largest tile of similarities: 16 MB of float32


def retrieval(
    pretrained: Pretrained, images: Iterable[CaptionedImage], *, batch_size: int, group: ProcessGroup | None
) -> dict[str, float]:
    """Retrieves texts for each image, and images for each text.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k` for k in `DEPTHS`, shares of the queries; the same on
        all ranks.

    Raises:
        InputError: an image or caption is missing or cannot be decoded.
    """
    pairs = _Pairs()
    local_images = embed_images(pretrained, pairs.collect(images), batch_size=batch_size, group=group)
    image_ND = _gathered([image_BD for _, image_BD in local_images], pairs.num_images, group)
    local_texts = embed_texts(pretrained, pairs.texts, batch_size=batch_size, group=group)
    text_MD = _gathered([text_BD for _, text_BD in local_texts], len(pairs.texts), group)
    pairs_P2 = torch.tensor(pairs.indices, dtype=torch.int64, device=image_ND.device)
    to_text = recall(image_ND, text_MD, pairs_P2, group=group)
    to_image = recall(text_MD, image_ND, pairs_P2.flip(1), group=group)
    return {f"image_to_text_recall@{k}": value for k, value in zip(DEPTHS, to_text, strict=True)} | {
        f"text_to_image_recall@{k}": value for k, value in zip(DEPTHS, to_image, strict=True)
    }


def recall(query_QD: Tensor, candidate_KD: Tensor, pairs_P2: Tensor, *, group: ProcessGroup | None) -> list[float]:
    """The fraction of queries with their nearest correct candidate among the nearest k, for k in `DEPTHS`.

    Every rank has all queries and candidates, and takes its share of the tiles; one all-reduce of three counts.
    `pairs_P2`, int64, has the indices of a query and of a candidate correct for it; at least one per query.
    """
    pairs_P2 = pairs_P2[pairs_P2[:, 0].argsort(stable=True)]
    hits_k = torch.zeros(len(DEPTHS), dtype=torch.int64, device=query_QD.device)
    # Tiles do not depend on the number of ranks, so the rounding of their products does not, either.
    for start in range(rank(group) * _QUERIES, query_QD.shape[0], world_size(group) * _QUERIES):
        tile_QD = query_QD[start : start + _QUERIES]
        first, last = torch.searchsorted(
            pairs_P2[:, 0].contiguous(), torch.tensor([start, start + _QUERIES], device=query_QD.device)
        ).tolist()
        correct_P2 = pairs_P2[first:last] - torch.tensor([start, 0], device=query_QD.device)
        wrong_Q = _num_wrong_before_correct(tile_QD, candidate_KD, correct_P2)
        hits_k += torch.stack([(wrong_Q < depth).sum() for depth in DEPTHS])
    return (all_reduce(hits_k, "sum", group).double() / query_QD.shape[0]).tolist()


def _num_wrong_before_correct(query_QD: Tensor, candidate_KD: Tensor, correct_P2: Tensor) -> Tensor:
    """For each query the number of wrong candidates that are not strictly below its best correct one, int64 (Q,).

    Every tile of similarities is computed twice, once for the best and once for the count. Both have the same rounding,
    and no matrix of all similarities is stored. NaN counts against the model.
    """
    best_Q = query_QD.new_full((query_QD.shape[0],), float("-inf"))
    for score_QK, correct_QK in _tiles(query_QD, candidate_KD, correct_P2):
        best_Q = torch.maximum(best_Q, score_QK.masked_fill(~correct_QK, float("-inf")).amax(dim=1))
    wrong_Q = torch.zeros(query_QD.shape[0], dtype=torch.int64, device=query_QD.device)
    for score_QK, correct_QK in _tiles(query_QD, candidate_KD, correct_P2):
        wrong_Q += (~(score_QK < best_Q[:, None]) & ~correct_QK).sum(dim=1)
    return wrong_Q


def _tiles(query_QD: Tensor, candidate_KD: Tensor, correct_P2: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, per tile of candidates, similarities float32 (Q, K) and a bool (Q, K) that marks the correct ones."""
    for start in range(0, candidate_KD.shape[0], _CANDIDATES):
        with torch.autocast(query_QD.device.type, enabled=False):  # in bf16 similar candidates would tie
            score_QK = query_QD @ candidate_KD[start : start + _CANDIDATES].T
        correct_QK = torch.zeros_like(score_QK, dtype=torch.bool)
        query_P, candidate_P = correct_P2[:, 0], correct_P2[:, 1] - start
        inside_P = (candidate_P >= 0) & (candidate_P < score_QK.shape[1])
        correct_QK[query_P[inside_P], candidate_P[inside_P]] = True
        yield score_QK, correct_QK


class _Pairs:
    """Indexes images and distinct texts during the iteration over a set, and records which belong together."""

    def __init__(self) -> None:
        self.num_images = 0
        self.indices: list[tuple[int, int]] = []
        """An image and a text that is one of its captions."""
        self._text_index: dict[str, int] = {}

    @property
    def texts(self) -> Sequence[str]:
        """The distinct texts in the order of their indices."""
        return list(self._text_index)

    def collect(self, images: Iterable[CaptionedImage]) -> Iterator[CaptionedImage]:
        """Yields the images unchanged."""
        for image in images:
            for caption in dict.fromkeys(image.captions):
                text = self._text_index.setdefault(caption, len(self._text_index))
                self.indices.append((self.num_images, text))
            self.num_images += 1
            yield image


def _gathered(batches: list[Tensor], total: int, group: ProcessGroup | None) -> Tensor:
    return gather_shared(torch.cat(batches), total=total, group=group)
