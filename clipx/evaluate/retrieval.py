"""Recall at 1, 5 and 10 between images and captions, in both directions.

A caption that several images share is one text, and correct for each of them; texts are the same if their tokens are. A
query is a hit at k if fewer than k wrong candidates are at least as near as its nearest correct one: ties count against
the model. Only of images with equal bytes, which nothing can tell apart, the first has the credit.

`like="clip_benchmark"` gives CLIP_benchmark's figures: every line is a text of its own, blank ones too, and correct for
its own image alone; of equal scores the earlier candidate is the nearer one, and an image without any line is a miss.
Without shared captions and blank lines the two are equal.

A million images with as many captions are no burden: embeddings are read tile by tile (`mapped_rows`), captions and
what belongs together are flat arrays.

Shapes: N images, L lines of caption, M distinct texts, C captions (lines or distinct texts), P pairs of an image and a
caption, D embedding, R resamples, U different outcomes of an image.
"""

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ProcessGroup

from clipx.data.labelled import RetrievalSet
from clipx.errors import InputError
from clipx.evaluate.bootstrap import outcome_counts
from clipx.evaluate.features import Features, entry_of, features_of, found_by_all, gathered, keep
from clipx.evaluate.mapped_rows import TextList
from clipx.evaluate.nearest import DEPTHS, Ties, wrong_before_correct
from clipx.evaluate.options import EvaluateOptions, Evaluation, Like
from clipx.evaluate.prompts import token_keys
from clipx.evaluate.sharing import embed_texts
from clipx.pretrained import Pretrained

_DIGEST = 16  # bytes that stand for the tokens of a text
_LINES = 4096  # that are tokenized at once

Ints = NDArray[np.int64]


def retrieval(
    pretrained: Pretrained, data: RetrievalSet, options: EvaluateOptions, *, group: ProcessGroup | None
) -> Evaluation:
    """Retrieves texts for each image, and images for each text.

    Returns:
        `image_to_text_recall@k` and `text_to_image_recall@k` for k in `DEPTHS`, shares of the queries; the same on
        all ranks. CLIP_benchmark calls them text_retrieval_recall@k and image_retrieval_recall@k. `mean_recall@k`, the
        mean of both, is derived.

    Raises:
        InputError: an image or caption is missing or cannot be decoded.
    """
    features = features_of(pretrained, data, options, group=group)
    texts = text_features(pretrained, data, features, options, group=group)
    wrong_N, wrong_C = wrong_both_ways(features, texts, like=options.like, device=pretrained.device, group=group)
    outcome_N7 = _outcomes(wrong_N, wrong_C, _owners(features, texts, like=options.like))
    all_images = _metrics(outcome_N7.sum(axis=0)[None], len(wrong_N))
    figures = {name: float(value_R[0]) for name, value_R in all_images.items()}
    derived = {name: figures.pop(name) for name in list(figures) if name.startswith("mean")}
    return Evaluation(
        task="zeroshot_retrieval",
        metrics=figures,
        derived=derived,
        resampled=_resampled(outcome_N7, resamples=options.resamples),
    )


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The distinct texts of a set, whose tokens differ, in the order of their first lines."""

    text_MD: NDArray[np.float32]
    """Their embeddings, of unit length; perhaps a mapped file."""
    row_L: Ints
    """For each line its text."""
    first_M: Ints
    """For each text its first line."""


def text_features(
    pretrained: Pretrained,
    data: RetrievalSet,
    features: Features,
    options: EvaluateOptions,
    *,
    group: ProcessGroup | None,
) -> Texts:
    """Embeds the distinct texts of a set, or finds that done in the cache; every rank of `group` must call it.

    Raises:
        InputError: there is no text.
    """
    lines = features.captions
    assert lines is not None
    if not len(lines):
        raise InputError("no image of the set has a caption; it needs one")
    entry = entry_of(options.cache, "texts", pretrained, data, group=group)
    if (found := found_by_all(entry, group=group)) is not None:
        return Texts(text_MD=found["text"], row_L=found["row"], first_M=found["first"])
    row_L, first_M = _distinct(pretrained, lines)
    size = options.batch_size
    blocks = embed_texts(pretrained, (lines[int(line)] for line in first_M), batch_size=size, group=group)
    text_MD = gathered(blocks, pretrained.config.embed_dim, batch_size=size, group=group)
    keep(entry, {"text": text_MD, "row": row_L, "first": first_M}, group=group)
    return Texts(text_MD=text_MD, row_L=row_L, first_M=first_M)


def _distinct(pretrained: Pretrained, lines: TextList) -> tuple[Ints, Ints]:
    """For each line its distinct text, and for each text its first line; texts count in the order of these."""
    digests = bytearray()
    for start in range(0, len(lines), _LINES):
        for key in token_keys(pretrained, lines[start : start + _LINES]):
            digests += blake2b(key, digest_size=_DIGEST).digest()
    digest_L = np.frombuffer(digests, f"V{_DIGEST}")
    _, first_M, row_L = np.unique(digest_L, return_index=True, return_inverse=True)
    order_M = np.argsort(first_M)
    number_M = np.empty_like(order_M)
    number_M[order_M] = np.arange(len(order_M))
    return number_M[row_L], first_M[order_M]


def wrong_both_ways(
    features: Features, texts: Texts, *, like: Like | None, device: torch.device, group: ProcessGroup | None
) -> tuple[Ints, Ints]:
    """For each image the wrong captions before its nearest one, and for each caption the wrong images.

    Captions are the distinct texts, `like="clip_benchmark"` the lines.

    Returns:
        int64 (N,) and int64 (C,), `nearest.NEVER` where there is no right one.
    """
    assert features.image_P is not None
    assert features.first_like_N is not None
    image_P = features.image_P
    if like:
        pairs_P2 = np.stack([image_P, np.arange(len(image_P))], axis=1)
        row_C: Ints | None = texts.row_L
    else:
        codes = np.unique(image_P * len(texts.first_M) + texts.row_L)  # below 2**63 for 3 * 10**9 of each
        pairs_P2 = np.stack(np.divmod(codes, len(texts.first_M)), axis=1)
        row_C = None
    pairs = torch.from_numpy(pairs_P2).to(device)
    rows = None if row_C is None else torch.from_numpy(row_C).to(device)
    first_like = torch.from_numpy(np.array(features.first_like_N)).to(device)
    ties: Ties = "by order" if like else "against"
    image_ND, text_MD = features.image_ND, texts.text_MD
    wrong_N = wrong_before_correct(image_ND, text_MD, pairs, group=group, row_C=rows, ties=ties)
    wrong_C = wrong_before_correct(
        text_MD, image_ND, pairs.flip(1), group=group, row_C=first_like, query_row_Q=rows, ties=ties
    )
    return wrong_N.cpu().numpy(), wrong_C.cpu().numpy()


def _owners(features: Features, texts: Texts, *, like: Like | None) -> Ints:
    """For each caption the image with which it is resampled: its first."""
    assert features.image_P is not None
    return features.image_P if like else features.image_P[texts.first_M]


def _outcomes(wrong_N: Ints, wrong_C: Ints, owner_C: Ints) -> Ints:
    """For each image, int64 (N, 7): hits of its own at each depth, hits of its captions at each, its captions."""
    size = len(wrong_N)
    own = [(wrong_N < depth).astype(np.int64) for depth in DEPTHS]
    of_captions = [np.bincount(owner_C[wrong_C < depth], minlength=size).astype(np.int64) for depth in DEPTHS]
    return np.stack([*own, *of_captions, np.bincount(owner_C, minlength=size).astype(np.int64)], axis=1)


def _metrics(sums_R7: Ints, num_images: int) -> dict[str, NDArray[np.float64]]:
    """The figures of each resample, by name, float64 (R,), from the sums of its images' outcomes."""
    depths = len(DEPTHS)
    to_text_Rk = sums_R7[:, :depths] / num_images
    to_image_Rk = sums_R7[:, depths : 2 * depths] / sums_R7[:, -1:]
    named = (("image_to_text", to_text_Rk), ("text_to_image", to_image_Rk), ("mean", (to_text_Rk + to_image_Rk) / 2))
    return {f"{way}_recall@{k}": values[:, place] for way, values in named for place, k in enumerate(DEPTHS)}


def _resampled(outcome_N7: Ints, *, resamples: int) -> dict[str, NDArray[np.float64]]:
    if not resamples:
        return {}
    outcome_U7, counts_U = np.unique(outcome_N7, axis=0, return_counts=True)
    pieces = [counts_RU @ outcome_U7 for counts_RU in outcome_counts(counts_U, resamples=resamples)]
    return _metrics(np.concatenate(pieces), len(outcome_N7))
