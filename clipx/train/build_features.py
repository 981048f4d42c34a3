"""Kept features of a run: what reads training samples in the place of shards, and the samples that it evaluates on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from clipx.checkpoint.store import Checkpoint
from clipx.checkpoint.tensors import load_weights
from clipx.config.fit import FitConfig
from clipx.data.build import open_samples
from clipx.data.columns import Wanted
from clipx.data.fit_columns import FitColumns, JoinedText
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.kept_samples import Hiding, KeptBatchReader, KeptSamples
from clipx.data.order import DataOrder
from clipx.data.tokenizer import Tokenizer
from clipx.distributed.runtime import Runtime
from clipx.fitting.features import FeatureSet, Pass, kept_samples
from clipx.models.fused import FusedModel
from clipx.pretrained import Pretrained


class KeptData(NamedTuple):
    """What a run with kept features reads."""

    reader: KeptBatchReader
    val: KeptSamples


def keep_features(
    config: FitConfig,
    runtime: Runtime,
    *,
    model: FusedModel,
    tokenizer: Tokenizer,
    index: ShardIndex,
    plan: DataOrder,
    checkpoint: Checkpoint | None,
    goes_on: Callable[[], bool],
) -> KeptData:
    """Computes the vectors of frozen towers, where they are not kept yet; all ranks call this.

    Args:
        config: resolved.
        runtime: the ranks.
        model: bare; of a run that goes on it gets the weights of the checkpoint.
        tokenizer: of the texts.
        index: of the shards for training.
        plan: the order of their samples.
        checkpoint: that the run goes on from.
        goes_on: see `clipx.fitting.features.Pass`.

    Raises:
        StopAskedError: on all ranks alike.
        RunError: storage failed.
    """
    with runtime.raise_on_all_ranks():
        if checkpoint is not None:
            load_weights(checkpoint.folder, model)
    val_index = _val_index(config, runtime)
    work = Pass(
        config=config,
        pretrained=Pretrained(model, config.model, tokenizer=tokenizer),
        group=runtime.host_group,
        autocast=runtime.accelerator.autocast,
        goes_on=goes_on,
    )
    train = kept_samples(work, _set("train", config, index, config.data.train_shards or ()))
    val = kept_samples(work, _set("val", config, val_index, config.data.val_shards or ()))
    hiding = Hiding(seed=config.seed, modalities=config.modalities, probability=config.absent.probability)
    return KeptData(KeptBatchReader(plan, train, hiding=hiding), val)
