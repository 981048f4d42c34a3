"""Runs an evaluation from its config, or on a folder, and returns its metrics."""

from pathlib import Path
from typing import assert_never

from torch.distributed import ProcessGroup

from clipx.config.evaluate import EvaluateConfig, RetrievalConfig, ZeroShotConfig
from clipx.data.labelled import (
    ClassificationSet,
    MultiLabelSet,
    RetrievalSet,
    open_classification,
    open_retrieval,
    open_set,
)
from clipx.distributed.collectives import raise_on_all_ranks
from clipx.errors import InputError
from clipx.evaluate.retrieval import Like, retrieval
from clipx.evaluate.zero_shot import zero_shot
from clipx.pretrained import Pretrained


def run_evaluation(config: EvaluateConfig, pretrained: Pretrained, group: ProcessGroup | None) -> dict[str, float]:
    """The metrics of one evaluation by name, the same on all ranks; every rank of `group` must call it.

    Raises:
        InputError: the data is missing, breaks its layout, or cannot be decoded.
    """
    match config:
        case ZeroShotConfig():
            with raise_on_all_ranks(group):
                classified = open_classification(config.data)
            return zero_shot(pretrained, classified, batch_size=config.batch_size, group=group)
        case RetrievalConfig():
            with raise_on_all_ranks(group):
                captioned = _captioned(config)
            return retrieval(pretrained, captioned.images(), batch_size=config.batch_size, group=group)
        case _:
            assert_never(config)


def check_evaluation(config: EvaluateConfig) -> None:
    """Checks an evaluation's data before the training starts: layout, shards, the first sample.

    It reads no other sample, and decodes no image.

    Raises:
        InputError: an error of the data that `run_evaluation` would raise, too.
    """
    match config:
        case ZeroShotConfig():
            next(open_classification(config.data).images())
        case RetrievalConfig():
            next(_captioned(config).images())
        case _:
            assert_never(config)


def evaluate_folder(
    pretrained: Pretrained, folder: Path, *, batch_size: int, group: ProcessGroup | None, like: Like | None = None
) -> dict[str, float]:
    """The metrics of a set, which says itself what it is for (`open_set`).

    `like="clip_benchmark"` gives its figures where clipx's differ on purpose (`retrieval.py`, `zero_shot.py`).

    Raises:
        InputError: the cases of `run_evaluation`.
    """
    with raise_on_all_ranks(group):
        opened = open_set(str(folder), every_line=like is not None)
    match opened:
        case ClassificationSet():
            return zero_shot(pretrained, opened, batch_size=batch_size, group=group, like=like)
        case RetrievalSet():
            return retrieval(pretrained, opened.images(), batch_size=batch_size, group=group, like=like)
        case MultiLabelSet():
            raise InputError(f"{folder} is a multilabel set, which is not evaluated yet")
        case _:
            assert_never(opened)


def _captioned(config: RetrievalConfig) -> RetrievalSet:
    return open_retrieval(config.data, image_key=config.image_key, caption_key=config.caption_key)
