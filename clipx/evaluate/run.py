"""From an evaluation's config, or a folder, to its figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from torch.distributed import ProcessGroup

from clipx.config.schema import EvaluateConfig, RetrievalConfig, ZeroShotConfig
from clipx.data.index import expand_shards
from clipx.data.labelled import benchmark_shards, dataset_type, open_classification_set, read_captioned
from clipx.evaluate.retrieval import retrieval
from clipx.evaluate.zero_shot import zero_shot
from clipx.pretrained import Pretrained


def run_evaluation(config: EvaluateConfig, pretrained: Pretrained, group: ProcessGroup | None) -> dict[str, float]:
    """The figures of one evaluation by name, the same on all ranks; every rank of `group` must call it.

    Raises:
        InputError: the data is missing, breaks its layout, or cannot be decoded.
    """
    match config:
        case ZeroShotConfig():
            return zero_shot(pretrained, Path(config.data), batch_size=config.batch_size, group=group)
        case RetrievalConfig():
            pictures = read_captioned(
                _retrieval_shards(config.data), image_key=config.image_key, caption_key=config.caption_key
            )
            return retrieval(pretrained, pictures, batch_size=config.batch_size, group=group)
        case _:
            assert_never(config)


def check_evaluation(config: EvaluateConfig) -> None:
    """Looks whether the data of an evaluation is there and laid out as it should be, without reading pictures.

    Raises:
        InputError: as `run_evaluation` would, only before hours of training and not after.
    """
    match config:
        case ZeroShotConfig():
            open_classification_set(Path(config.data))
        case RetrievalConfig():
            _retrieval_shards(config.data)
        case _:
            assert_never(config)


def evaluate_folder(
    pretrained: Pretrained, folder: Path, *, batch_size: int, group: ProcessGroup | None
) -> dict[str, float]:
    """The figures of a folder in CLIP_benchmark's layout; its dataset_type.txt decides which.

    Raises:
        InputError: as `run_evaluation`.
    """
    match dataset_type(folder):
        case "classification":
            return run_evaluation(ZeroShotConfig(data=str(folder), batch_size=batch_size), pretrained, group)
        case "retrieval":
            return run_evaluation(RetrievalConfig(data=str(folder), batch_size=batch_size), pretrained, group)
        case unknown:
            assert_never(unknown)


def _retrieval_shards(data: str) -> Sequence[str]:
    """A folder with a test set is CLIP_benchmark's; everything else names shards, as in `data.train`."""
    folder = Path(data)
    return benchmark_shards(folder) if (folder / "test").is_dir() else expand_shards([data])
