"""Config to run: everything that the loop needs, built once, resumed where a checkpoint exists."""

import logging
import socket
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipx.checkpoint.state import DataOrderRecord, MicroBatch, Progress, RunState
from clipx.checkpoint.store import Checkpoint
from clipx.checkpoint.tensors import holds_average, load_tensors
from clipx.config.fit import FitConfig
from clipx.config.geometry import resolve_geometry
from clipx.config.phases import Phase, check_stages, phase_at, stage_end
from clipx.config.run_length import RunLength
from clipx.config.schema import JobConfig, with_model
from clipx.data.build import build_order
from clipx.data.index.shard_index import ShardIndex
from clipx.data.kept_samples import KeptSamples
from clipx.data.order import DataOrder
from clipx.data.samples import PartReader, join_parts
from clipx.data.stream import PairStream, rank_slots
from clipx.data.teachers import teachers_of
from clipx.data.teachers.description import Description
from clipx.data.tokenizer import Tokenizer, build_tokenizer
from clipx.distributed.runtime import Runtime
from clipx.errors import InputError
from clipx.export.formats import formats_of
from clipx.objectives.build import build_objective
from clipx.objectives.objective import FIRST_SAMPLES, BuildObjective, Objective
from clipx.optim.optimizers import inner_optimizer
from clipx.optim.schedules import cooldown_of, warmup_of
from clipx.pretrained import Pretrained, start_from
from clipx.pretrained.kept_texts import with_kept_texts
from clipx.train.build_data import load_indexes, open_stream, phase_reader, plan_record
from clipx.train.build_selection import flops_per_picture, selection_of, with_reference
from clipx.train.build_stepper import build_stepper, check_step
from clipx.train.loss_spikes import Rollback
from clipx.train.metrics.monitor import Monitor
from clipx.train.metrics.quarantine import Quarantine
from clipx.train.metrics.warnings import Diagnosis
from clipx.train.resume import compatible_state, is_branch, newest_checkpoint, versions
from clipx.train.step import Stepper
from clipx.types import Batch

_LOOKED_AT = 256  # pairs at once before a run begins: what fits in training is not known yet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is ready to go on from `progress`."""

    config: JobConfig
    runtime: Runtime
    length: RunLength
    """How its steps and its pairs correspond."""
    phase: Phase
    """What holds until its end; the run is built anew then."""
    plan: DataOrder
    stream: PairStream
    stepper: Stepper
    encoder: Pretrained
    """The live model as evaluators see it."""
    state: RunState
    monitor: Monitor
    quarantine: Quarantine
    branched: bool = False
    """Whether its state is another run's checkpoint (`branch_from`), which its own folder does not have yet."""
    kept_val: KeptSamples | None = None
    """The held-out samples of a run that keeps features."""

    @property
    def run_dir(self) -> Path:
        """Folder of everything that the run writes."""
        return Path(self.config.run_dir)

    @property
    def progress(self) -> Progress:
        """Where the run stands; the one thing here that changes."""
        return self.state.progress

    def batches(self) -> Generator[Batch]:
        """This rank's batches, from the next one to the last of the phase."""
        start, skipped = self.progress.next_batch, self.progress.skipped_batches
        stop = start + self.phase.until - self.progress.step
        for batch in skipped:  # ascending
            stop += start <= batch < stop
        return self.stream.batches(start, stop, left_out=frozenset(skipped))

    def data_figures(self, batches: int) -> dict[str, float]:
        """What was read by the end of a number of global batches: epochs; in a mixture counts by source too."""
        is_choosing = self.config.pairs_read != self.config.global_batch_size
        read: dict[str, float] = {"samples_read": batches * self.config.pairs_read} if is_choosing else {}
        counts = self.plan.samples_of_source(batches)
        epochs = [count / source.num_samples for count, source in zip(counts, self.plan.sources, strict=True)]
        if len(counts) == 1:
            return {"epoch": epochs[0], **read}
        figures: dict[str, float] = read
        for name, count, epoch in zip(self.config.data.sources, counts, epochs, strict=True):
            figures |= {f"samples/{name}": count, f"epoch/{name}": epoch}
            figures[f"bad_samples/{name}"] = self.quarantine.count(name)
        return figures


def build_run(
    config: JobConfig,
    runtime: Runtime,
    rollback: Rollback | None = None,
    *,
    build: BuildObjective = build_objective,
    between: Callable[[], None] = lambda: None,
) -> Run:
    """Builds all parts, loads the newest good checkpoint if there is one.

    Args:
        config: of the run.
        runtime: the ranks; all of them call this.
        rollback: the batches that the run skips from here on, which that checkpoint does not know of.
        build: config to objective.
        between: called by all ranks now and then where building takes long; ends it by an exception of its own.

    Raises:
        InputError: the config does not fit the ranks, the data or the checkpoint; on all ranks alike.
    """
    captions = config.data.captions_per_image  # checked before anything is made
    resolve_geometry(config.global_batch_size, config.micro_batch_size, runtime.world_size, captions_per_image=captions)
    if (select := selection_of(config)) is not None:
        select.super_batch_size(config.global_batch_size, runtime.world_size)
    checkpoint = newest_checkpoint(config, runtime)
    indexes = load_indexes(config.data, runtime)
    with runtime.raise_on_all_ranks():
        parts = _prepare(config, runtime, checkpoint=checkpoint, indexes=indexes, rollback=rollback, build=build)
    if isinstance(config, FitConfig) and config.keeps_features:
        parts = _with_kept_features(parts, config, runtime, index=indexes[0], checkpoint=checkpoint, between=between)
    branched = is_branch(config, checkpoint)
    saved, length, phase, objective = parts.saved, parts.length, parts.phase, parts.objective
    if saved is None:
        with runtime.accelerator.autocast():  # what is measured are vectors as steps compute them
            objective.begin(_first_batches(parts, config, runtime), runtime.group)
    flops_per_picture_read = flops_per_picture(config, objective, phase)  # of the towers before they are wrapped
    stepper = _ready_stepper(parts, config, runtime, checkpoint)
    state = RunState(
        progress=parts.progress,
        data_order=parts.record,
        wandb_id=_new_id(runtime) if saved is None or branched else saved.wandb_id,
        objective=type(objective).__qualname__,
        versions=versions(),
        teachers=None if parts.taught is None else parts.taught.fingerprint(),
        micro_batch=MicroBatch(stepper.micro_batch_size, runtime.world_size, phase.until),
    )
    stream = open_stream(
        config,
        runtime,
        parts.reader,
        parts.plan,
        image_size=objective.wanted.image_size(phase.image_size),
        start=parts.progress.next_batch,
        flops_per_image=flops_per_picture_read,
    )
    return Run(
        config=config,
        runtime=runtime,
        length=length,
        phase=phase,
        plan=parts.plan,
        stream=stream,
        stepper=stepper,
        encoder=Pretrained(
            objective.model, config.model, tokenizer=parts.tokenizer, in_parts=config.parallel.type != "fsdp2"
        ),
        state=state,
        monitor=Monitor(runtime, config, length, _diagnosis(config, runtime, length, workers=stream.workers)),
        quarantine=Quarantine(Path(config.run_dir) / "quarantine.jsonl", resumed_step=parts.progress.step),
        branched=branched,
        kept_val=parts.kept_val,
    )


def _new_id(runtime: Runtime) -> str:
    """Of a tracker's run; equal on all ranks."""
    return runtime.broadcast_from_rank0(uuid.uuid4().hex[:12])


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What each rank makes for itself, before the ranks work together."""

    saved: RunState | None
    """The checkpoint's; None if the run begins."""
    record: DataOrderRecord
    taught: Description | None
    """Of the store of teachers' embeddings that is read."""
    plan: DataOrder
    progress: Progress
    length: RunLength
    phase: Phase
    objective: Objective
    """Its model is on the rank's device, with the weights of the start."""
    reader: PartReader
    tokenizer: Tokenizer
    kept_val: KeptSamples | None = None
    """See `Run.kept_val`."""


def _prepare(
    config: JobConfig,
    runtime: Runtime,
    *,
    checkpoint: Checkpoint | None,
    indexes: Sequence[ShardIndex],
    rollback: Rollback | None,
    build: BuildObjective,
) -> _Parts:
    """All that can fail because of the config, the data or the checkpoint; nothing is sent."""
    for evaluation in config.evaluate.values():
        from clipx.evaluate.run import check_evaluation

        check_evaluation(evaluation)
    readable = config if checkpoint is None else _with_kept_texts(config)
    tokenizer = build_tokenizer(readable.model.text)
    record = plan_record(config, indexes, begun=None if checkpoint is None else checkpoint.state().data_order)
    plan = build_order(config, indexes, lanes=record.lanes, shuffle_window=record.shuffle_window)
    teachers = teachers_of(config)
    taught = None if teachers is None else teachers.description
    saved = None if checkpoint is None else compatible_state(config, checkpoint, record, taught=taught)
    progress = Progress() if saved is None else saved.progress
    length = config.length([(step, seen) for step, seen in progress.batch_changes])
    check_stages(config, length)
    if runtime.is_main and rollback is None and (saved is None or is_branch(config, checkpoint)):
        _warn_of_ends(config, length, begins_at=progress.step)
    if rollback is not None:
        rollback.apply(progress)
    phase = phase_at(config, progress.step, length)
    objective = build(readable, phase, vocab_size=tokenizer.vocab_size)
    if saved is not None and saved.objective not in (None, type(objective).__qualname__):
        raise InputError(
            f"{config.run_dir} was begun with the objective {saved.objective}, not {type(objective).__qualname__}; go "
            "on with the program that began it, or choose a new run_dir"
        )
    wanted = with_reference(objective.wanted, config)
    reader = phase_reader(readable, indexes, plan, phase=phase, wanted=wanted)
    model = objective.model.to(runtime.device)
    check_step(config, runtime, objective)
    if saved is None and config.start_from is not None:
        start_from(config.start_from, model, config=config.model, tokenizer=tokenizer, anyway=config.start_from_anyway)
    if runtime.is_main and saved is None and rollback is None:
        _log_formats(Pretrained(model, config.model, tokenizer=tokenizer))
    return _Parts(
        saved=saved,
        record=record,
        taught=taught,
        plan=plan,
        progress=progress,
        length=length,
        phase=phase,
        objective=objective,
        reader=reader,
        tokenizer=tokenizer,
    )


def _with_kept_features(
    parts: _Parts,
    config: FitConfig,
    runtime: Runtime,
    *,
    index: ShardIndex,
    checkpoint: Checkpoint | None,
    between: Callable[[], None],
) -> _Parts:
    """The parts with a reader of kept features, and with the samples that are held out."""
    from clipx.train.build_features import keep_features

    reader, val = keep_features(
        config,
        runtime,
        model=parts.objective.model,
        tokenizer=parts.tokenizer,
        index=index,
        plan=parts.plan,
        checkpoint=checkpoint,
        between=between,
    )
    return replace(parts, reader=reader, kept_val=val)


def _first_batches(parts: _Parts, config: JobConfig, runtime: Runtime) -> Iterator[Batch]:
    """This rank's parts of the first global batches on its device, in pieces, read as they are asked for."""
    slots = rank_slots(parts.plan, rank=runtime.rank, world_size=runtime.world_size)
    size = parts.objective.wanted.image_size(parts.phase.image_size)
    in_epoch = max(1, parts.plan.num_samples // parts.plan.global_batch_size)
    captions = config.data.captions_per_image
    at_once = max(1, _LOOKED_AT // captions) * captions
    for index in range(min(in_epoch, -(-FIRST_SAMPLES // parts.plan.global_batch_size))):
        images_IHWC = torch.empty(len(slots), size, size, 3, dtype=torch.uint8)
        part = parts.reader.read(index, slots, out=images_IHWC, prefetch=False)
        batch = join_parts([part], images_IHWC, captions_per_image=captions)
        for piece in batch.micro_batches(at_once):
            yield piece.to(runtime.device)


def _with_kept_texts(config: JobConfig) -> JobConfig:
    """The config with which a run that goes on builds its model, where folders that it names may be gone."""
    return with_model(config, with_kept_texts(config.model, [Path(config.run_dir)]))


def _warn_of_ends(config: JobConfig, length: RunLength, *, begins_at: int) -> None:
    """Says what is well defined and in a long run a mistake: ends that belong to another length."""
    for name, stage in config.stages.items():
        if (end := stage_end(stage, length)) >= length.num_steps:
            log.warning(
                "stage %s ends at step %d, and the run at %d: its inputs never become the model's own; set its end to "
                "less than the run's",
                name,
                end,
                length.num_steps,
            )
    cooldown = length.num_steps - cooldown_of(config.optim, length)
    if begins_at > cooldown:
        log.warning(
            "branch_from is at step %d, and the cooldown begins at %d: the learning rate falls at once; branch from an "
            "earlier checkpoint, or shorten optim.cooldown_steps or optim.cooldown_samples",
            begins_at,
            cooldown,
        )


def _log_formats(pretrained: Pretrained) -> None:
    """Says at the start of a run what its model can be exported to, and why not to the others."""
    try:
        formats = formats_of(pretrained)
    except Exception as error:  # a person's own objective may have a model of any kind; a line ends no run
        log.info("formats of an export: not known for this model (%s)", " ".join(str(error).split()))
        return
    reasons = "".join(f"; not {name}: {reason}" for name, reason in formats.items() if reason is not None)
    log.info("formats of an export: %s%s", ", ".join(n for n, reason in formats.items() if reason is None), reasons)


def _diagnosis(config: JobConfig, runtime: Runtime, length: RunLength, *, workers: int) -> Diagnosis:
    return Diagnosis(
        max_logit_scale=config.model.max_logit_scale,
        warmup_steps=warmup_of(config.optim, length),
        max_bad_fraction=config.data.max_bad_fraction,
        workers=workers,
        hosts=runtime.gather_objects(socket.gethostname()),
        captions_per_image=config.data.captions_per_image,
    )


def _ready_stepper(parts: _Parts, config: JobConfig, runtime: Runtime, checkpoint: Checkpoint | None) -> Stepper:
    """The stepper of the phase, with all that the checkpoint holds."""
    found = None if checkpoint is None else _found_before(parts, config, runtime, checkpoint)
    stepper = build_stepper(
        config, runtime, parts.objective, length=parts.length, phase=parts.phase, micro_batch_size=found
    )
    if checkpoint is not None and parts.saved is not None:
        _resume(checkpoint, parts.saved, stepper)
    return stepper


def _resume(checkpoint: Checkpoint, saved: RunState, stepper: Stepper) -> None:
    """Loads weights, moments, their average and the loss scaler; an average that is new begins with the weights."""
    average = stepper.ema.state_dict() if stepper.ema is not None and holds_average(checkpoint.folder) else None
    load_tensors(checkpoint.folder, stepper.model, inner_optimizer(stepper.optimizer), average=average)
    if stepper.ema is not None and average is None:
        stepper.ema.load_state_dict(dict(stepper.objective.model.named_parameters()))
    stepper.runtime.load_grad_scaler(saved.grad_scaler)
    if stepper.runtime.is_main:
        log.info("resuming from %s", checkpoint)


def _found_before(parts: _Parts, config: JobConfig, runtime: Runtime, checkpoint: Checkpoint) -> int | None:
    """What `micro_batch_size: auto` found when this phase began, where all that decides it is as it was then."""
    saved, before = checkpoint.state(), checkpoint.config()
    found, step, phase = saved.micro_batch, saved.progress.step, parts.phase
    if found is None or (found.world_size, found.until) != (runtime.world_size, phase.until):
        return None
    length = before.length([(step, seen) for step, seen in saved.progress.batch_changes])
    alike = _memory_of(before, phase_at(before, step, length)) == _memory_of(config, phase)
    return found.size if config.micro_batch_size == "auto" and alike else None


def _memory_of(config: JobConfig, phase: Phase) -> tuple[object, ...]:
    """What decides how many pairs fit."""
    work = (config.micro_batch_size, config.precision, config.activation_checkpointing)
    batch = (config.global_batch_size, config.pairs_read)
    return (*work, *batch, config.model, config.parallel, config.ema is None, phase)
