"""Recall at 1, 5 and 10 between pictures and captions, both ways.

A caption that several pictures share is one text, and right for each of them; without shared captions the figures are
CLIP_benchmark's. A query is a hit at k if fewer than k wrong candidates are as near as its nearest right one: ties
count against the model.

Shapes: N pictures, M distinct texts, P pairs of the two, D embedding, Q queries and K candidates of a tile.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import CaptionedPicture
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.evaluate.sharing import embed_images, embed_texts, gather_shared
from clipx.pretrained import Pretrained

DEPTHS = (1, 5, 10)
_QUERIES, _CANDIDATES = 512, 8192  # largest tile of similarities: 16 MB of float32


def retrieval(
    pretrained: Pretrained, pictures: Iterable[CaptionedPicture], *, batch_size: int, group: ProcessGroup | None
) -> dict[str, float]:
    """Finds texts by picture and pictures by text.

    Args:
        pretrained: the model.
        pictures: the whole set, the same on every rank.
        batch_size: pictures or texts per forward pass and rank.
        group: ranks that share the work.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k` for k in `DEPTHS`, shares of the queries; the same on
        all ranks.

    Raises:
        InputError: a picture or caption is missing or cannot be decoded.
    """
    pairs = _Pairs()
    own_images = embed_images(pretrained, pairs.collect(pictures), batch_size=batch_size, group=group)
    image_ND = _gathered([image_BD for _, image_BD in own_images], pairs.num_pictures, group)
    own_texts = embed_texts(pretrained, pairs.texts, batch_size=batch_size, group=group)
    text_MD = _gathered([text_BD for _, text_BD in own_texts], len(pairs.texts), group)
    pairs_P2 = torch.tensor(pairs.numbers, dtype=torch.int64, device=image_ND.device)
    to_text = recall(image_ND, text_MD, pairs_P2, group=group)
    to_image = recall(text_MD, image_ND, pairs_P2.flip(1), group=group)
    return {f"image_to_text_recall@{k}": value for k, value in zip(DEPTHS, to_text, strict=True)} | {
        f"text_to_image_recall@{k}": value for k, value in zip(DEPTHS, to_image, strict=True)
    }


def recall(query_QD: Tensor, candidate_KD: Tensor, pairs_P2: Tensor, *, group: ProcessGroup | None) -> list[float]:
    """The share of queries whose nearest right candidate is among the nearest k, for k in `DEPTHS`.

    Args:
        query_QD: all queries, on every rank.
        candidate_KD: all candidates, on every rank.
        pairs_P2: int64 (P, 2), which candidate is right for which query; at least one for each query.
        group: ranks that share the tiles; one all-reduce of three counts.
    """
    pairs_P2 = pairs_P2[pairs_P2[:, 0].argsort(stable=True)]
    hits_k = torch.zeros(len(DEPTHS), dtype=torch.int64, device=query_QD.device)
    # Tiles are cut the same for every number of ranks, and so are the roundings of their products.
    for start in range(rank(group) * _QUERIES, query_QD.shape[0], world_size(group) * _QUERIES):
        tile_QD = query_QD[start : start + _QUERIES]
        first, last = torch.searchsorted(
            pairs_P2[:, 0].contiguous(), torch.tensor([start, start + _QUERIES], device=query_QD.device)
        ).tolist()
        right_P2 = pairs_P2[first:last] - torch.tensor([start, 0], device=query_QD.device)
        wrong_Q = _wrong_before_right(tile_QD, candidate_KD, right_P2)
        hits_k += torch.stack([(wrong_Q < depth).sum() for depth in DEPTHS])
    return (all_reduce(hits_k, "sum", group).double() / query_QD.shape[0]).tolist()


def _wrong_before_right(query_QD: Tensor, candidate_KD: Tensor, right_P2: Tensor) -> Tensor:
    """For each query how many wrong candidates are not strictly below its best right one, int64 (Q,).

    Every tile of similarities is computed twice, once for the best and once for the count, so that both see the same
    rounding and no Q x all matrix stands. NaN counts against the model.
    """
    best_Q = query_QD.new_full((query_QD.shape[0],), float("-inf"))
    for score_QK, right_QK in _tiles(query_QD, candidate_KD, right_P2):
        best_Q = torch.maximum(best_Q, score_QK.masked_fill(~right_QK, float("-inf")).amax(dim=1))
    wrong_Q = torch.zeros(query_QD.shape[0], dtype=torch.int64, device=query_QD.device)
    for score_QK, right_QK in _tiles(query_QD, candidate_KD, right_P2):
        wrong_Q += (~(score_QK < best_Q[:, None]) & ~right_QK).sum(dim=1)
    return wrong_Q


def _tiles(query_QD: Tensor, candidate_KD: Tensor, right_P2: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Similarities float32 (Q, K) with a bool (Q, K) that marks the right ones, candidates tile by tile."""
    for start in range(0, candidate_KD.shape[0], _CANDIDATES):
        with torch.autocast(query_QD.device.type, enabled=False):  # in bf16 near candidates would tie
            score_QK = query_QD @ candidate_KD[start : start + _CANDIDATES].T
        right_QK = torch.zeros_like(score_QK, dtype=torch.bool)
        query_P, candidate_P = right_P2[:, 0], right_P2[:, 1] - start
        inside_P = (candidate_P >= 0) & (candidate_P < score_QK.shape[1])
        right_QK[query_P[inside_P], candidate_P[inside_P]] = True
        yield score_QK, right_QK


class _Pairs:
    """Numbers pictures and distinct texts as they pass, and notes which belong together."""

    def __init__(self) -> None:
        self.num_pictures = 0
        self.numbers: list[tuple[int, int]] = []
        self._number_of: dict[str, int] = {}

    @property
    def texts(self) -> Sequence[str]:
        """The distinct texts in the order of their numbers."""
        return list(self._number_of)

    def collect(self, pictures: Iterable[CaptionedPicture]) -> Iterator[CaptionedPicture]:
        """Passes the pictures on."""
        for picture in pictures:
            for caption in dict.fromkeys(picture.captions):
                text = self._number_of.setdefault(caption, len(self._number_of))
                self.numbers.append((self.num_pictures, text))
            self.num_pictures += 1
            yield picture


def _gathered(batches: list[Tensor], total: int, group: ProcessGroup | None) -> Tensor:
    return gather_shared(torch.cat(batches), total=total, group=group)
