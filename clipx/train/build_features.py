"""Kept features of a run: what reads training samples in the place of shards, and the samples that it evaluates on."""

from collections.abc import Callable
from typing import NamedTuple

from clipx.checkpoint.store import Checkpoint
from clipx.checkpoint.tensors import load_weights
from clipx.config.fit import FitConfig
from clipx.data.build import open_fit_samples, open_fit_targets
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.kept_samples import KeptBatchReader, KeptSamples
from clipx.data.modality_dropout import ModalityDropout
from clipx.data.order import DataOrder
from clipx.data.tokenizer import Tokenizer
from clipx.distributed.runtime import Runtime
from clipx.fitting.features import FeatureSet, Pass, kept_samples
from clipx.models.clip import CLIP
from clipx.pretrained import Pretrained


class KeptData(NamedTuple):
    """What a run with kept features reads."""

    reader: KeptBatchReader
    val: KeptSamples


def keep_features(
    config: FitConfig,
    runtime: Runtime,
    *,
    model: CLIP,
    tokenizer: Tokenizer,
    index: ShardIndex,
    plan: DataOrder,
    checkpoint: Checkpoint | None,
    between: Callable[[], None],
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
        between: see `clipx.fitting.features.Pass`.

    Raises:
        RunError: storage failed.
    """
    with runtime.raise_on_all_ranks():
        if checkpoint is not None:
            load_weights(checkpoint.folder, model)
    val_index = load_val_index(config, runtime)
    work = Pass(
        config=config,
        pretrained=Pretrained(model, config.model, tokenizer=tokenizer),
        group=runtime.host_group,
        autocast=runtime.accelerator.autocast,
        between=between,
    )
    train, val = (
        kept_samples(
            work,
            FeatureSet(
                name=name,
                index=of_set,
                inputs=open_fit_samples(config, of_set, targets=False),
                targets=open_fit_targets(config, of_set),
            ),
        )
        for name, of_set in (("train", index), ("val", val_index))
    )
    dropout = ModalityDropout(seed=config.seed, modalities=config.modalities, probability=config.absent.probability)
    return KeptData(KeptBatchReader(plan, train, dropout=dropout), val)


def load_val_index(config: FitConfig, runtime: Runtime) -> ShardIndex:
    """The index of the held-out samples; rank 0 makes what is missing, for all."""
    with runtime.raise_on_all_ranks():
        index = build_index(list(config.data.val_shards or ()), index_dir=None) if runtime.is_main else None
    found = runtime.broadcast_from_rank0(index)
    assert found is not None
    return found
