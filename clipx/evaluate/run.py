"""Runs an evaluation from its config, or on a folder, and returns its metrics."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import assert_never

from torch.distributed import ProcessGroup

from clipx.config.evaluate import EvaluateConfig, RetrievalConfig, ZeroShotConfig
from clipx.data.index.shard_list import expand_shards
from clipx.data.labelled import (
    IMAGE_KEY,
    CaptionedImage,
    benchmark_shards,
    dataset_type,
    open_classification_set,
    read_captioned,
    read_labelled,
    require_type,
)
from clipx.distributed.collectives import raise_on_all_ranks
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
            return zero_shot(pretrained, Path(config.data), batch_size=config.batch_size, group=group)
        case RetrievalConfig():
            with raise_on_all_ranks(group):
                images = _captioned(config)
            return retrieval(pretrained, images, batch_size=config.batch_size, group=group)
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
            data = open_classification_set(Path(config.data))
            next(read_labelled(data.shards, num_classes=len(data.class_names)))
        case RetrievalConfig():
            next(_captioned(config))
        case _:
            assert_never(config)


def evaluate_folder(
    pretrained: Pretrained, folder: Path, *, batch_size: int, group: ProcessGroup | None, like: Like | None = None
) -> dict[str, float]:
    """The metrics of a folder in CLIP_benchmark's layout; its dataset_type.txt decides which.

    `like="clip_benchmark"` gives its figures where clipx's differ on purpose (`retrieval.py`, `zero_shot.py`).

    Raises:
        InputError: the cases of `run_evaluation`.
    """
    with raise_on_all_ranks(group):
        kind = dataset_type(folder)
    match kind:
        case "classification":
            return zero_shot(pretrained, folder, batch_size=batch_size, group=group, like=like)
        case "retrieval":
            config = RetrievalConfig(data=str(folder), batch_size=batch_size)
            with raise_on_all_ranks(group):
                images = _captioned(config, like=like)
            return retrieval(pretrained, images, batch_size=batch_size, group=group, like=like)
        case _:
            assert_never(kind)


def _captioned(config: RetrievalConfig, *, like: Like | None = None) -> Iterator[CaptionedImage]:
    """The images of a folder with a test set, which is CLIP_benchmark's, or of the shards that the config names."""
    folder = Path(config.data)
    if (folder / "test").is_dir():
        require_type(folder, "retrieval")
        shards: Sequence[str] = benchmark_shards(folder)
    else:
        shards = expand_shards([config.data])
    if like:
        return read_captioned(shards, image_key=IMAGE_KEY, caption_key="txt", every_line=True)
    return read_captioned(shards, image_key=config.image_key, caption_key=config.caption_key)
