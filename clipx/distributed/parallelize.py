"""Spreads a model over the ranks: DDP or FSDP2, as the runtime was started. The only place that wraps a model."""

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clipx.distributed.runtime import Runtime


def parallelize(runtime: Runtime, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """The model and optimizer as they train: on the rank's device, wrapped for the parallelism the runtime was given.

    They are prepared together, because FSDP2 replaces the parameters that the optimizer holds. The loader and the
    schedule are never prepared: accelerate would shard the stream a second time and step the schedule W times.
    """
    with warnings.catch_warnings():
        # torch 2.15 renamed the option; the new name does not exist in 2.11
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        prepared_model, prepared_optimizer = runtime.accelerator.prepare(model, optimizer)
    return prepared_model, prepared_optimizer


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Backward passes within leave gradients on their rank; the next one outside reduces all of them.

    Not accelerate's own, which synchronises after all when DDP runs on one process. FSDP2 reduce-scatters in every
    backward pass, which gives the same sum.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
