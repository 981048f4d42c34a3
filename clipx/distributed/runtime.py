"""The process state of a run: the part of accelerate's that clipx uses. This room owns accelerate.

With one process no process group exists: `group` is None, and every collective returns its input.
"""

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.config.parallel import Fsdp2Config, ParallelConfig
from clipx.config.schema import JobConfig
from clipx.distributed import collectives
from clipx.distributed.environment import overrule_environment
from clipx.distributed.launchers import adopt_ranks, warn_if_alone
from clipx.errors import InputError, RunError
from clipx.host import end_with_parent

T = TypeVar("T")

# fp8 is bf16 with other linear layers in the blocks (`clipx.distributed.block_transforms`)
_MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16", "fp8": "bf16"}
_FP8_CAPABILITY = (8, 9)  # Ada and Hopper have float8 matrix products, what came before has not
# One rank indexes, or embeds the last shard, while the others wait; these commands have no watchdog. A rank that dies
# ends the others by its connection or by the launcher, and one that never comes by torch's own timeout.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Runtime:
    """This process among the ranks: its rank, its device, the group, and messages between ranks."""

    accelerator: Accelerator
    parallel: ParallelConfig
    """How the ranks share the model: DDP or FSDP2, and the timeout."""
    host_group: ProcessGroup | None
    """All ranks, for messages between hosts: by gloo, since NCCL's would wait for all that the device has queued."""

    @property
    def rank(self) -> int:
        """The index of this process, 0 to W-1."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """W, the number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this rank, rank 0, writes files and prints for the person."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device on which this rank computes."""
        device: torch.device = self.accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def group(self) -> ProcessGroup | None:
        """The group of all ranks; None if there is one process."""
        return dist.group.WORLD if dist.is_initialized() else None

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.accelerator.wait_for_everyone()

    def release(self) -> None:
        """Drops the references to what `parallelize` prepared, so that another model can be prepared."""
        self.accelerator.free_memory()

    def broadcast_from_rank0(self, value: T) -> T:
        """Rank 0's value, on every rank; the values of other ranks are ignored."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's (picklable) value, in the order of ranks, on every rank."""
        return collectives.gather_objects(value, self.host_group)

    def raise_on_all_ranks(self) -> AbstractContextManager[None]:
        """A context whose errors all ranks raise: `clipx.distributed.collectives.raise_on_all_ranks`."""
        return collectives.raise_on_all_ranks(self.host_group)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """What the backward pass starts from: in fp16 the loss times the loss scaler's factor, else the loss itself.

        Not by accelerate's `backward`, which also divides by its own number of accumulation steps.
        """
        scaler = self.accelerator.scaler
        scaled: Tensor = loss if scaler is None else scaler.scale(loss)
        return scaled

    def grad_scaler_state(self) -> dict[str, float] | None:
        """The state of the fp16 loss scaler; None in other precisions."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def load_grad_scaler(self, state: dict[str, float] | None) -> None:
        """Loads a saved state of the loss scaler, if there is one and this run has a loss scaler."""
        if self.accelerator.scaler is not None and state is not None:
            self.accelerator.scaler.load_state_dict(state)


@contextmanager
def start_runtime(config: JobConfig) -> Iterator[Runtime]:
    """Joins the ranks that the launcher started (torchrun, accelerate launch, srun; one rank under plain python).

    Raises:
        InputError: this machine does not support the precision or the parallelism.
        RunError: the other processes did not join within `parallel.timeout_s`.
    """
    overrule_environment(config)
    _check_machine(config)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)  # if torchrun's agent is killed; the run saves on SIGTERM
    if not dist.is_initialized():  # else a program of its own has joined them
        adopt_ranks(os.environ)
        warn_if_alone(os.environ)
    _quiet_libraries()
    with _torch_settings(config):
        accelerator = _join(
            config,
            # without this, accelerate starts no process group on a machine without GPUs: N ranks would be N runs
            cpu=not torch.cuda.is_available(),
            mixed_precision=_MIXED_PRECISION[config.precision],
            log_with=_trackers(config),
            project_dir=config.run_dir,
            kwargs_handlers=[
                InitProcessGroupKwargs(
                    # without a launcher accelerate makes no group, and if it is given a backend it asks for one
                    backend=_backend(config) if "LOCAL_RANK" in os.environ else None,
                    timeout=timedelta(seconds=config.parallel.timeout_s),
                ),
                # buffers are constants, except BatchNorm's statistics, which each rank has for itself: nothing to send
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
        try:
            if isinstance(config.parallel, Fsdp2Config) and not dist.is_initialized():
                store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not exported
                # FSDP2 needs a group on one process, too.
                dist.init_process_group(_backend(config), store=store, rank=0, world_size=1)
            yield Runtime(accelerator, config.parallel, _host_group(config))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            # accelerate keeps its state as long as the process; a second run in it may have another precision
            AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _torch_settings(config: JobConfig) -> Iterator[None]:
    """torch's global settings for a run; those that the program had come back after it.

    A rank without a GPU computes in one thread: sums over several depend on their number, which cores, affinity and
    variables would decide. More cores take more ranks.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property
    if not torch.cuda.is_available():
        os.environ["OMP_NUM_THREADS"] = "1"  # or accelerate chooses a number
        torch.set_num_threads(1)
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        # filling all that is allocated, to show who reads what nobody wrote, doubles the launches of a step
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Its gradients may be NaN (clipx.models.attention.backends, which admits it where it was tried).
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        torch.set_num_threads(threads)


def _join(config: JobConfig, **options: Any) -> Accelerator:
    try:
        return Accelerator(**options)
    except RuntimeError as error:
        if not _is_of_ranks(error):
            raise
        raise RunError(
            f"not all {os.environ.get('WORLD_SIZE')} processes met within parallel.timeout_s="
            f"{config.parallel.timeout_s} ({_reason(error)}); see that all were started and reach "
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        ) from error


def _is_of_ranks(error: RuntimeError) -> bool:
    """Whether ranks do not reach each other."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)  # gloo has no type


def _reason(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:200]


def _host_group(config: JobConfig) -> ProcessGroup | None:
    if not dist.is_initialized() or dist.get_backend() == "gloo":
        return dist.group.WORLD if dist.is_initialized() else None
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.parallel.timeout_s))
    except RuntimeError as error:
        if not _is_of_ranks(error):
            raise
        raise RunError(
            f"the hosts do not reach each other by gloo ({_reason(error)}), though NCCL finds its own way; often a "
            "host's name stands for its loopback in /etc/hosts: name the network interface in GLOO_SOCKET_IFNAME"
        ) from error
    assert isinstance(group, ProcessGroup)  # new_group has another value for ranks outside
    return group


@contextmanager
def join_ranks(*, patience: timedelta | None = _PATIENCE) -> Iterator[tuple[torch.device, ProcessGroup | None]]:
    """This rank's device and the group of all ranks, for commands that share work but do not train.

    Args:
        patience: how long a rank waits for a slower one once all have come; None for torch's own timeout.
    """
    overrule_environment()
    if not dist.is_initialized():
        adopt_ranks(os.environ)
    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        group = dist.group.WORLD if dist.is_initialized() else None
        yield state.device, group if group is None or patience is None else _patient_group(patience)
    finally:
        state.destroy_process_group()
        PartialState._reset_state()


def _patient_group(patience: timedelta) -> ProcessGroup:
    """All ranks; given to the first group instead, the timeout would hold for joining too."""
    group = dist.new_group(timeout=patience)
    assert isinstance(group, ProcessGroup)  # new_group has another value for ranks outside
    collectives.gather_objects(None, group)  # NCCL connects in the first call: now, when all come soon
    return group


def _check_machine(config: JobConfig) -> None:
    on_gpu = torch.cuda.is_available()
    if config.precision == "fp16" and not on_gpu:
        raise InputError("precision=fp16 needs a GPU; on a CPU use fp32 or bf16")
    if config.precision == "fp8":
        _check_fp8()
    if isinstance(config.parallel, Fsdp2Config) and config.parallel.cpu_offload and not on_gpu:
        raise InputError("parallel.cpu_offload=true moves weights off the GPU, and there is none; set it to false")


def _check_fp8() -> None:
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability < _FP8_CAPABILITY:
        gpu = "none" if capability is None else f"{torch.cuda.get_device_name()}, {capability[0]}.{capability[1]}"
        raise InputError(
            f"precision=fp8 needs a GPU of compute capability 8.9 or higher (H100, L40), and here is {gpu}; use bf16"
        )
    if importlib.util.find_spec("torchao") is None:
        raise InputError("precision=fp8 needs torchao, which is not installed; `pip install torchao`, or use bf16")


def _backend(config: JobConfig) -> str | None:
    """The backend of the collectives; None means the default of accelerate and torch: NCCL with a GPU, else gloo."""
    offloaded = isinstance(config.parallel, Fsdp2Config) and config.parallel.cpu_offload
    return "cuda:nccl,cpu:gloo" if offloaded else None  # the norm of offloaded gradients is summed on the host


def _trackers(config: JobConfig) -> list[str] | None:
    wanted = {"wandb": config.track.wandb != "disabled", "tensorboard": config.track.tensorboard}
    return [name for name, on in wanted.items() if on] or None


def _quiet_libraries() -> None:
    """Limits libraries that print per rank and per step to warnings; clipx's own loggers stay at info."""
    for name in ("accelerate", "wandb", "torch.distributed.checkpoint"):
        logging.getLogger(name).setLevel(logging.WARNING)
