"""Recall at 1, 5 and 10 between images and captions, in both directions.

A caption that several images share is one text, and correct for each of them; texts are the same if their tokens are. A
query is a hit at k if fewer than k wrong candidates are at least as near as its nearest correct one: ties count against
the model. Only of images with equal bytes, which nothing can tell apart, the first has the credit.

`like="clip_benchmark"` gives CLIP_benchmark's figures: every line is a text of its own, blank ones too, and correct for
its own image alone; of equal scores the earlier candidate is the nearer one, and an image without any line is a miss.
Without shared captions and blank lines the two are equal.

Shapes: N images, C captions, M distinct texts, P pairs of an image and a caption, D embedding, Q queries and K
candidates of a tile.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.data.labelled import CaptionedImage
from clipx.distributed.collectives import all_reduce, rank, world_size
from clipx.errors import InputError
from clipx.evaluate.prompts import token_keys
from clipx.evaluate.sharing import embed_images, embed_texts, gather_shared
from clipx.pretrained import Pretrained

DEPTHS = (1, 5, 10)
Like = Literal["clip_benchmark"]
_Ties = Literal["against", "against, but of one row", "by order"]
_QUERIES, _CANDIDATES = 512, 8192  # largest tile of similarities: 16 MB of float32


def retrieval(
    pretrained: Pretrained,
    images: Iterable[CaptionedImage],
    *,
    batch_size: int,
    group: ProcessGroup | None,
    like: Like | None = None,
) -> dict[str, float]:
    """Retrieves texts for each image, and images for each text.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k` for k in `DEPTHS`, shares of the queries; the same on
        all ranks. CLIP_benchmark calls them text_retrieval_recall@k and image_retrieval_recall@k.

    Raises:
        InputError: an image or caption is missing or cannot be decoded.
    """
    pairs = _Pairs(pretrained, every_line=like is not None)
    local_images = embed_images(pretrained, pairs.collect(images), batch_size=batch_size, group=group)
    image_ND = _gathered([image_BD for _, image_BD in local_images], pairs.num_images, group)
    if not pairs.texts:
        raise InputError("no image of the set has a caption; it needs one")
    local_texts = embed_texts(pretrained, pairs.texts, batch_size=batch_size, group=group)
    text_MD = _gathered([text_BD for _, text_BD in local_texts], len(pairs.texts), group)
    pairs_P2 = torch.tensor(pairs.indices, dtype=torch.int64, device=image_ND.device).view(-1, 2)
    text_C = torch.tensor(pairs.text_of_caption, dtype=torch.int64, device=image_ND.device)
    ties: _Ties = "by order" if like else "against"
    to_text = recall(image_ND, text_MD, pairs_P2, group=group, row_C=text_C, ties=ties)
    image_N = torch.tensor(pairs.first_like_image, dtype=torch.int64, device=image_ND.device)
    to_image = recall(text_MD[text_C], image_ND, pairs_P2.flip(1), group=group, row_C=image_N, ties=ties)
    return {f"image_to_text_recall@{k}": value for k, value in zip(DEPTHS, to_text, strict=True)} | {
        f"text_to_image_recall@{k}": value for k, value in zip(DEPTHS, to_image, strict=True)
    }


def recall(
    query_QD: Tensor,
    candidate_MD: Tensor,
    pairs_P2: Tensor,
    *,
    group: ProcessGroup | None,
    row_C: Tensor | None = None,
    ties: _Ties = "against",
) -> list[float]:
    """The fraction of queries with their nearest correct candidate among the nearest k, for k in `DEPTHS`.

    Every rank has all queries and candidates, and takes its share of the tiles; one all-reduce of three counts.

    Args:
        pairs_P2: int64, the indices of a query and of a candidate that is correct for it.
        row_C: int64, each candidate's row of `candidate_MD`; None means that they are the candidates. Candidates with
            one row have one score to the bit, and of them the one with the smaller index is nearer.
        ties: what else is as near as the nearest correct one counts as nearer ("against" the model), or only if its
            index is smaller ("by order").
    """
    pairs_P2 = pairs_P2[pairs_P2[:, 0].argsort(stable=True)]
    if row_C is None:
        row_C = torch.arange(len(candidate_MD), device=candidate_MD.device)
    if ties == "against" and len(row_C.unique()) < len(row_C):
        ties = "against, but of one row"
    hits_k = torch.zeros(len(DEPTHS), dtype=torch.int64, device=query_QD.device)
    # Tiles do not depend on the number of ranks, so the rounding of their products does not, either.
    for start in range(rank(group) * _QUERIES, query_QD.shape[0], world_size(group) * _QUERIES):
        tile_QD = query_QD[start : start + _QUERIES]
        first, last = torch.searchsorted(
            pairs_P2[:, 0].contiguous(), torch.tensor([start, start + _QUERIES], device=query_QD.device)
        ).tolist()
        correct_P2 = pairs_P2[first:last] - torch.tensor([start, 0], device=query_QD.device)
        wrong_Q, found_Q = _num_wrong_before_correct(tile_QD, candidate_MD, correct_P2, row_C=row_C, ties=ties)
        hits_k += torch.stack([(found_Q & (wrong_Q < depth)).sum() for depth in DEPTHS])
    return (all_reduce(hits_k, "sum", group).double() / query_QD.shape[0]).tolist()


class _Tile(NamedTuple):
    """Some candidates, and how near they are to the queries."""

    score_QK: Tensor
    """float32."""
    correct_QK: Tensor
    """bool."""
    index_K: Tensor
    """int64, the candidates."""


def _num_wrong_before_correct(
    query_QD: Tensor, candidate_MD: Tensor, correct_P2: Tensor, *, row_C: Tensor, ties: _Ties
) -> tuple[Tensor, Tensor]:
    """For each query the number of wrong candidates before its best correct one, int64 (Q,), and whether it has one.

    Every tile of similarities is computed twice, once for the best and once for the count. Both have the same rounding,
    and no matrix of all similarities is stored. NaN counts against the model.
    """
    best_Q = query_QD.new_full((query_QD.shape[0],), float("-inf"))
    place_Q = torch.zeros_like(best_Q, dtype=torch.int64)  # of the best correct one; no candidate is before 0
    for score_QK, correct_QK, index_K in _tiles(query_QD, candidate_MD, correct_P2, row_C):
        correct_score_QK = score_QK.masked_fill(~correct_QK, float("-inf"))
        tile_best_Q = correct_score_QK.amax(dim=1)
        if ties != "against":
            is_best_QK = correct_QK & (correct_score_QK == tile_best_Q[:, None])
            tile_place_Q = torch.where(is_best_QK, index_K, len(row_C)).amin(dim=1)
            nearer_Q = (tile_best_Q > best_Q) | ((tile_best_Q == best_Q) & (tile_place_Q < place_Q))
            place_Q = torch.where(nearer_Q, tile_place_Q, place_Q)
        best_Q = torch.maximum(best_Q, tile_best_Q)
    wrong_Q = torch.zeros_like(place_Q)
    for score_QK, correct_QK, index_K in _tiles(query_QD, candidate_MD, correct_P2, row_C):
        before_QK = ~(score_QK < best_Q[:, None])
        if ties != "against":
            later_QK = (score_QK == best_Q[:, None]) & (index_K > place_Q[:, None])
            if ties == "against, but of one row":
                later_QK &= row_C[index_K] == row_C[place_Q][:, None]
            before_QK &= ~later_QK
        wrong_Q += (before_QK & ~correct_QK).sum(dim=1)
    return wrong_Q, best_Q > float("-inf")


def _tiles(query_QD: Tensor, candidate_MD: Tensor, correct_P2: Tensor, row_C: Tensor) -> Iterator[_Tile]:
    """Yields all candidates, those of a tile of rows after those of another."""
    for start in range(0, candidate_MD.shape[0], _CANDIDATES):
        inside_C = (row_C >= start) & (row_C < start + _CANDIDATES)
        index_K = inside_C.nonzero()[:, 0]
        if not len(index_K):
            continue
        with torch.autocast(query_QD.device.type, enabled=False):  # in bf16 similar candidates would tie
            score_QM = query_QD @ candidate_MD[start : start + _CANDIDATES].T
        column_C = inside_C.cumsum(0) - 1  # in this tile
        query_P, candidate_P = correct_P2.unbind(1)
        inside_P = inside_C[candidate_P]
        correct_QK = torch.zeros(len(query_QD), len(index_K), dtype=torch.bool, device=query_QD.device)
        correct_QK[query_P[inside_P], column_C[candidate_P[inside_P]]] = True
        yield _Tile(score_QM[:, row_C[index_K] - start], correct_QK, index_K)


class _Pairs:
    """Indexes images, captions and distinct texts while a set is read, and records which belong together.

    Args:
        every_line: every line is a caption of its own; otherwise all with the same tokens are one.
    """

    def __init__(self, pretrained: Pretrained, *, every_line: bool) -> None:
        self.num_images = 0
        self.first_like_image: list[int] = []
        """For each image the first one with the same bytes."""
        self.texts: list[str] = []
        """The distinct texts."""
        self.text_of_caption: list[int] = []
        self.indices: list[tuple[int, int]] = []
        """An image and one of its captions."""
        self._pretrained = pretrained
        self._every_line = every_line
        self._text_index: dict[bytes, int] = {}
        self._image_index: dict[bytes, int] = {}

    def collect(self, images: Iterable[CaptionedImage]) -> Iterator[CaptionedImage]:
        """Yields the images unchanged."""
        for image in images:
            captions = dict.fromkeys(map(self._caption, image.captions, token_keys(self._pretrained, image.captions)))
            self.indices += [(self.num_images, caption) for caption in captions]
            digest = blake2b(image.data, digest_size=16).digest()
            self.first_like_image.append(self._image_index.setdefault(digest, self.num_images))
            self.num_images += 1
            yield image

    def _caption(self, text: str, key: bytes) -> int:
        """The index of a caption, perhaps a new one."""
        index = self._text_index.setdefault(key, len(self.texts))
        if new := index == len(self.texts):
            self.texts.append(text)
        if new or self._every_line:
            self.text_of_caption.append(index)
            return len(self.text_of_caption) - 1
        return index


def _gathered(batches: Sequence[Tensor], total: int, group: ProcessGroup | None) -> Tensor:
    return gather_shared(torch.cat(list(batches)), total=total, group=group)
