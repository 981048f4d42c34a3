"""Config to run: everything that the loop needs, built once, resumed where a checkpoint exists."""

import logging
import platform
import subprocess
import uuid
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import assert_never

from clipx.checkpoint.state import DataPlanRecord, Progress, RunState
from clipx.checkpoint.store import checkpoint_name, load_state, load_tensors, newest_checkpoint, set_aside_newer
from clipx.config.geometry import resolve_geometry
from clipx.config.load import dump_config
from clipx.config.schema import DataConfig, InfoNCEConfig, LossConfig, RunConfig, SigmoidConfig
from clipx.data.index import ShardIndex, build_index, load_index
from clipx.data.plan import Plan
from clipx.data.stream import PairStream, open_stream
from clipx.data.tokenizer import build_tokenizer
from clipx.data.transforms import TrainTransform
from clipx.distributed.parallelize import parallelize
from clipx.distributed.runtime import Runtime, start_trackers
from clipx.errors import ClipxError, InputError
from clipx.evaluate.run import check_evaluation
from clipx.losses import ContrastiveLoss
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.models.clip import build_model
from clipx.optim.optimizers import build_optimizer, inner_optimizer
from clipx.optim.schedules import learning_rate
from clipx.pretrained import Pretrained
from clipx.train.monitor import Monitor, Quarantine
from clipx.train.step import Stepper
from clipx.types import Batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run that is ready to go on from `progress`."""

    config: RunConfig
    runtime: Runtime
    stream: PairStream
    stepper: Stepper
    encoder: Pretrained
    """The live model as evaluators see it."""
    state: RunState
    monitor: Monitor
    quarantine: Quarantine

    @property
    def run_dir(self) -> Path:
        """Folder of everything that the run writes."""
        return Path(self.config.run_dir)

    @property
    def progress(self) -> Progress:
        """Where the run stands; the one thing here that changes."""
        return self.state.progress

    def batches(self) -> Generator[Batch]:
        """This rank's batches, from the next one to the run's last."""
        remaining = self.config.num_steps - self.progress.step
        start = self.progress.next_batch
        return self.stream.batches(start, start + remaining)


def build_run(config: RunConfig, runtime: Runtime) -> Run:
    """Builds all parts, loads the newest good checkpoint if there is one.

    Raises:
        InputError: the config does not fit the ranks, the data or the checkpoint; on all ranks alike.
    """
    geometry = resolve_geometry(config.global_batch_size, config.micro_batch_size, runtime.world_size)
    run_dir = Path(config.run_dir)
    for evaluation in config.evaluate.values():
        check_evaluation(evaluation)
    checkpoint = _prepare_folder(config, runtime)
    tokenizer = build_tokenizer(config.model.text)
    index = _load_index_together(config.data, runtime)
    plan = Plan(
        index.counts,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
        lanes=config.data.lanes,
        window=config.data.shuffle_window,
        allow_repeats=config.data.allow_repeats,
    )
    state = _initial_state(config, runtime, checkpoint, _record(plan, index))
    stream = open_stream(
        index,
        plan,
        data=config.data,
        transform=TrainTransform(config.model.image.image_size, config.data.augment),
        tokenizer=tokenizer,
        rank=runtime.rank,
        world_size=runtime.world_size,
        pin_memory=runtime.device.type == "cuda",
    )

    towers = build_model(config.model, vocab_size=tokenizer.vocab_size, seed=config.seed).to(runtime.device)
    model, optimizer = parallelize(runtime, towers, build_optimizer(config.optim, towers))
    if checkpoint is not None:
        load_tensors(checkpoint, model, inner_optimizer(optimizer))
        if runtime.is_main:
            log.info("resuming from %s", checkpoint)

    schedule = partial(
        learning_rate,
        peak=config.optim.lr,
        warmup_steps=config.optim.warmup_steps,
        num_steps=config.num_steps,
        minimum=config.optim.min_lr,
    )
    stepper = Stepper(
        runtime=runtime,
        model=model,
        towers=towers,
        optimizer=optimizer,
        loss=build_loss(config.loss),
        learning_rate=schedule,
        micro_batch_size=geometry.micro_batch_size,
        clip_grad_norm=config.optim.clip_grad_norm,
        seed=config.seed,
    )
    monitor = Monitor(
        runtime,
        run_dir,
        num_steps=config.num_steps,
        global_batch_size=config.global_batch_size,
        every=config.track.every_steps,
    )
    return Run(
        config=config,
        runtime=runtime,
        stream=stream,
        stepper=stepper,
        encoder=Pretrained(towers, config.model, tokenizer=tokenizer),
        state=state,
        monitor=monitor,
        quarantine=Quarantine(run_dir / "quarantine.jsonl", resumed_step=state.progress.step),
    )


def build_loss(config: LossConfig) -> ContrastiveLoss:
    """Config to loss."""
    match config:
        case InfoNCEConfig():
            return InfoNCELoss(tile_size=config.tile_size)
        case SigmoidConfig():
            return SigmoidLoss(tile_size=config.tile_size)
        case _:
            assert_never(config)


def _prepare_folder(config: RunConfig, runtime: Runtime) -> Path | None:
    """Rank 0 makes the run folder and picks the checkpoint to resume from; every rank learns which."""
    run_dir = Path(config.run_dir)
    error: Exception | None = None
    step: int | None = None
    if runtime.is_main:
        try:
            (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
            newest = newest_checkpoint(run_dir)
            step = None if newest is None else load_state(newest).progress.step
            set_aside_newer(run_dir, newest)
            (run_dir / "config.yaml").write_text(dump_config(config))
        except OSError as problem:
            error = InputError(f"run_dir={run_dir} cannot be written ({problem}); choose a folder that can")
    runtime.raise_together(error)
    step = runtime.from_main(step)
    return None if step is None else run_dir / "checkpoints" / checkpoint_name(step)


def _load_index_together(config: DataConfig, runtime: Runtime) -> ShardIndex:
    """Rank 0 makes what is missing of the index, the others read it then."""
    index_dir = None if config.index is None else Path(config.index)
    error: Exception | None = None
    index: ShardIndex | None = None
    if runtime.is_main:
        try:
            index = build_index(config.train, index_dir=index_dir)
        except (ClipxError, OSError) as problem:
            error = problem
    runtime.raise_together(error)
    return index if index is not None else load_index(config.train, index_dir=index_dir)


def _record(plan: Plan, index: ShardIndex) -> DataPlanRecord:
    return DataPlanRecord(
        fingerprint=index.fingerprint(),
        num_shards=len(index.paths),
        num_samples=index.num_samples,
        lanes=plan.lanes,
        shuffle_window=plan.window,
        global_batch_size=plan.global_batch_size,
        seed=plan.seed,
    )


def _initial_state(config: RunConfig, runtime: Runtime, checkpoint: Path | None, record: DataPlanRecord) -> RunState:
    """The state to go on from; a resumed run must have the data plan that it began with."""
    if checkpoint is None:
        wandb_id = runtime.from_main(uuid.uuid4().hex[:12])
        return RunState(progress=Progress(), plan=record, wandb_id=wandb_id, versions=versions())
    saved = load_state(checkpoint)
    changes = saved.plan.differences(record)
    if changes and not config.data.allow_change:
        raise InputError(
            f"the data order of {config.run_dir} has changed since {checkpoint.name}: {'; '.join(changes)}; "
            "restore it, choose a new run_dir, or go on with the new data by data.allow_change=true"
        )
    if changes and runtime.is_main:
        log.warning("going on with a changed data order: %s", "; ".join(changes))
    return RunState(progress=saved.progress, plan=record, wandb_id=saved.wandb_id, versions=versions())


def open_trackers(run: Run) -> None:
    """Starts wandb and tensorboard; last, so that a run that cannot start leaves no trace there."""
    start_trackers(
        run.runtime,
        project=run.config.track.project,
        config=asdict(run.config),
        wandb_mode=run.config.track.wandb,
        wandb_id=run.state.wandb_id,
        run_dir=run.run_dir,
    )


def versions() -> dict[str, str]:
    """What computed this: recorded in every checkpoint."""
    names = ("clipx", "torch", "torchvision", "timm", "transformers", "accelerate", "webdataset", "numpy")
    found = {"python": platform.python_version()} | {name: version(name) for name in names}
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found | ({"git_commit": commit.stdout.strip()} if commit.returncode == 0 else {})
