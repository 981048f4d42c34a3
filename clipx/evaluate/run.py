"""Runs an evaluation from its config, or on a folder, and returns its metrics."""

from pathlib import Path
from typing import assert_never

from torch.distributed import ProcessGroup

from clipx.config.data import sources
from clipx.config.evaluate import EvaluateConfig, HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.config.schema import RunConfig
from clipx.data.labelled import (
    AnySet,
    ClassificationSet,
    MultiLabelSet,
    RetrievalSet,
    open_classification,
    open_retrieval,
    open_set,
)
from clipx.distributed.collectives import raise_on_all_ranks
from clipx.errors import InputError
from clipx.evaluate.held_out_loss import HeldOutLoss, held_out_loss
from clipx.evaluate.multi_label import multi_label
from clipx.evaluate.options import EvaluateOptions, Evaluation, Like
from clipx.evaluate.retrieval import retrieval
from clipx.evaluate.zero_shot import zero_shot
from clipx.objectives.build import build_loss
from clipx.pretrained import Pretrained


def run_evaluation(
    config: EvaluateConfig, pretrained: Pretrained, group: ProcessGroup | None, *, run: RunConfig | None = None
) -> dict[str, float]:
    """The metrics of `evaluate_config` alone."""
    return evaluate_config(config, pretrained, group, run=run).metrics


def evaluate_config(
    config: EvaluateConfig,
    pretrained: Pretrained,
    group: ProcessGroup | None,
    *,
    run: RunConfig | None = None,
    resamples: int = 0,
) -> Evaluation:
    """The figures of one evaluation of a run, the same on all ranks; every rank of `group` must call it.

    Args:
        run: whose loss, batch and equal captions an evaluation of type loss has; others need none.
        resamples: of the images, for the intervals of the figures; 0: none.

    Raises:
        InputError: the data is missing, breaks its layout, or cannot be decoded.
    """
    options = EvaluateOptions(batch_size=config.batch_size, resamples=resamples)
    match config:
        case ZeroShotConfig():
            with raise_on_all_ranks(group):
                classified = open_classification(config.data, split=config.split)
            return evaluate_set(pretrained, classified, options, group)
        case RetrievalConfig():
            with raise_on_all_ranks(group):
                captioned = _captioned(config)
            return evaluate_set(pretrained, captioned, options, group)
        case HeldOutLossConfig():
            with raise_on_all_ranks(group):
                pairs = _captioned(config)
                settings = _of_run(config, run)
            return held_out_loss(pretrained, pairs, settings, options, group=group)
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
            next(open_classification(config.data, split=config.split).images())
        case RetrievalConfig() | HeldOutLossConfig():
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
    return evaluate_set(pretrained, opened, EvaluateOptions(batch_size=batch_size, like=like), group).metrics


def evaluate_set(
    pretrained: Pretrained, data: AnySet, options: EvaluateOptions, group: ProcessGroup | None
) -> Evaluation:
    """The figures of a set and their intervals, the same on all ranks; every rank of `group` must call it.

    Raises:
        InputError: an image, or what is known of it, is missing or wrong, or cannot be decoded.
    """
    match data:
        case ClassificationSet():
            return zero_shot(pretrained, data, options, group=group)
        case RetrievalSet():
            return retrieval(pretrained, data, options, group=group)
        case MultiLabelSet():
            return multi_label(pretrained, data, options, group=group)
        case _:
            assert_never(data)


def _captioned(config: RetrievalConfig | HeldOutLossConfig) -> RetrievalSet:
    return open_retrieval(config.data, image_key=config.image_key, caption_key=config.caption_key, split=config.split)


def _of_run(config: HeldOutLossConfig, run: RunConfig | None) -> HeldOutLoss:
    if run is None:
        raise InputError("an evaluation of type loss computes the loss of a run; give the run's config")
    ignored = any(source.equal_captions == "ignored" for source in sources(run.data))
    return HeldOutLoss(
        loss=build_loss(run.loss),
        pairs=config.pairs_of_batch(run.global_batch_size, run.data.captions_per_image),
        equal_are_negatives=not ignored,
    )
