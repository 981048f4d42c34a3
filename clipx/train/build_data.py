"""Config to data: the indexes of all sources, the plan over them, and this rank's stream."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from clipx.checkpoint.state import DataOrderRecord
from clipx.config.data import StreamConfig, sources
from clipx.config.phases import Phase
from clipx.config.schema import JobConfig
from clipx.data.build import build_order, open_reader
from clipx.data.columns import Wanted
from clipx.data.index.shard_index import ShardIndex, build_index
from clipx.data.kept_samples import KeptBatchReader
from clipx.data.order import DataOrder
from clipx.data.samples import BatchReader, PartReader
from clipx.data.stream import PairStream, rank_slots
from clipx.data.teacher_columns import image_column, text_column
from clipx.data.teachers import Teachers, teachers_of
from clipx.data.tokenizer import build_tokenizer
from clipx.distributed.hardware import peak_flops
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.host import own_cores, share_of_cores

_BEST_MFU = 0.6  # nothing of this kind has been seen to train faster: a loader that keeps up with it always does

log = logging.getLogger(__name__)


def load_indexes(data: StreamConfig, runtime: Runtime) -> list[ShardIndex]:
    """The index of every source; rank 0 lists shards and makes what is missing, for all: stores are asked once."""
    indexes: list[ShardIndex] = []
    with runtime.raise_on_all_ranks():
        if runtime.is_main:
            indexes = [
                build_index(source.shards, index_dir=source.index, remote=data.remote) for source in sources(data)
            ]
    return runtime.broadcast_from_rank0(indexes)


def plan_record(
    config: JobConfig, indexes: Sequence[ShardIndex], *, begun: DataOrderRecord | None = None
) -> DataOrderRecord:
    """What determines the order beside the seed, for `build_order` and for checkpoints.

    Args:
        config: of the run.
        indexes: of its sources.
        begun: of the checkpoint that the run goes on from. What is `auto` stays as it was resolved when the run began,
            whatever `auto` means by now, unless something else has changed too. A global batch of another size,
            of one source, goes on in the same order if its lanes divide it.

    Raises:
        InputError: as `DataOrder`.
    """
    plan = build_order(config, indexes)
    prints = [index.fingerprint() for index in indexes]
    record = DataOrderRecord(
        fingerprint=prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest(),
        num_shards=sum(len(index.paths) for index in indexes),
        num_samples=plan.num_samples,
        lanes=plan.lanes,
        shuffle_window=plan.window,
        global_batch_size=plan.global_batch_size,
        seed=plan.seed,
        weights={name: source.weight for name, source in config.data.sources.items()},
    )
    if begun is None:
        return record
    kept = replace(
        record,
        lanes=begun.lanes if config.data.lanes == "auto" else record.lanes,
        shuffle_window=begun.shuffle_window if config.data.shuffle_window == "auto" else record.shuffle_window,
    )
    fits = not config.data.sources and kept.global_batch_size % kept.lanes == 0
    same_order = replace(kept, global_batch_size=begun.global_batch_size) == begun and fits
    return kept if kept == begun or same_order else record


def phase_reader(
    config: JobConfig,
    indexes: Sequence[ShardIndex],
    plan: DataOrder,
    *,
    phase: Phase,
    wanted: Wanted,
) -> BatchReader:
    """What reads samples as the phase and the objective want them.

    Raises:
        InputError: files of class names or templates, or a folder for copies of shards, that cannot be used; a store of
            teachers' embeddings that does not fit, or that nothing uses.
    """
    teachers = teachers_of(config)
    if teachers is not None:
        _require_use(teachers, wanted)
    return open_reader(
        indexes,
        plan,
        data=config.data,
        image_size=wanted.image_size(phase.image_size),
        tokenizer=build_tokenizer(config.model.text, context_length=phase.context_length),
        image=config.model.image,
        wanted=wanted,
        teachers=teachers,
    )


def _require_use(teachers: Teachers, wanted: Wanted) -> None:
    """Raises InputError if a run names teachers, and asks none of them."""
    columns = {column(name) for name in teachers.names for column in (image_column, text_column)}
    if not any(columns & set(reader.columns) for reader in wanted.columns):
        raise InputError(
            f"{teachers.named} is used by nothing: name a loss that learns from teachers "
            "(loss.terms.distill), or take it away"
        )


def open_stream(
    config: JobConfig,
    runtime: Runtime,
    reader: PartReader,
    plan: DataOrder,
    *,
    image_size: int,
    start: int,
    flops_per_image: float,
) -> PairStream:
    """This rank's batches, to the end of the phase.

    Args:
        config: of the run.
        runtime: the ranks; all of them call this.
        reader: of the samples (`phase_reader`).
        plan: their order.
        image_size: of the pictures that the reader gives; 0 if it gives none.
        start: the global batch that will be read first.
        flops_per_image: of a step, for each picture that it reads, at least; with the GPU's peak it says how fast
            pictures can be used. 0 if there are none: then nobody knows.
    """
    slots = rank_slots(plan, rank=runtime.rank, world_size=runtime.world_size)
    workers = config.data.workers
    if workers == "auto" and isinstance(reader, KeptBatchReader):
        workers = 0  # a batch costs less than handing it over
    elif workers == "auto":
        peak = peak_flops(runtime.device)
        pace = None if peak is None or not flops_per_image else _BEST_MFU * peak / flops_per_image
        out = torch.empty(1, image_size, image_size, 3, dtype=torch.uint8)
        workers = _choose_workers(partial(_read_one, reader, slots, start, out), runtime, pace=pace, slots=len(slots))
    return PairStream(
        reader,
        slots=slots,
        image_size=image_size,
        workers=workers,
        prefetch_batches=config.data.prefetch_batches,
        pin_memory=runtime.device.type == "cuda",
    )


def _read_one(reader: PartReader, slots: range, start: int, out: Tensor, number: int) -> None:
    """The rank's picture of this number, counted from batch `start` on."""
    batches, slot = divmod(number, len(slots))
    reader.read(start + batches, slots[slot : slot + 1], out=out, prefetch=False)


def _choose_workers(read: Callable[[int], None], runtime: Runtime, *, pace: float | None, slots: int) -> int:
    """The loader processes that this rank needs, by a short measurement on what it will read first."""
    from clipx.data.workers import choose_workers, measure_image

    cores = own_cores()
    share = share_of_cores(cores, runtime.gather_objects(cores))
    with runtime.raise_on_all_ranks():
        on_cpu = runtime.device.type == "cpu"
        choice = choose_workers(measure_image(read), cores=share, pace=pace, slots=slots, on_cpu=on_cpu)
    if runtime.is_main:
        log.info("%s", choice.why)
    return choice.workers
