"""What ranks tell each other with a step, and what the host reads of it one step later.

Figures go by name. Whoever counts something names it once, where it is counted (`Batch.counts`, `Share.figures`,
`Objective.figures`); all ranks' numbers are summed in the order of the names, in the one all-reduce of the step, and
metrics.jsonl shows them under the same names.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from clipx.distributed.collectives import all_reduce
from clipx.distributed.runtime import Runtime
from clipx.errors import RunError
from clipx.objectives.objective import Share
from clipx.types import BadSample, axis_of, tensors_of


class Clock:
    """Measures the sections of one step.

    On CUDA, it records events in the stream; the time between two of them is what the device needed. On other devices
    it takes the host's time, since there the host computes.

    Args:
        device: the device on which the step computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, section: str) -> Iterator[None]:
        """Adds the time within the block to `section`; sections may repeat and nest."""
        if self._cuda:
            start = self._record()
            yield
            self._events.append((section, start, self._record()))
            return
        began = time.perf_counter()
        yield
        self._seconds[section] += time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Seconds by section. The device must have finished the step."""
        total = self._seconds.copy()
        for section, start, end in self._events:
            total[section] += start.elapsed_time(end) / 1000
        return dict(total)

    def _record(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class StopOrSave:
    """What this rank asks of all ranks; combined in the step's own all-reduce."""

    stop: bool = False
    save: bool = False


class RankStats(NamedTuple):
    """What a rank tells all others about itself with each step."""

    data_wait_s: float = 0.0
    """Seconds that it stood waiting for the step's batch."""
    forward_s: float = 0.0
    """Seconds of the model's forward passes in the last step that it has read: its own work, before it waits for others
    (FSDP2 waits within)."""
    memory_gib: float = 0.0
    """Resident memory of the process, without its loader processes."""
    read_wait_s: float = 0.0
    """Seconds that its loader processes waited for remote storage, summed."""


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What a step did, read from the device; equal on all ranks except `bad_here` and `seconds`."""

    step: int
    batch: int
    """Position of its global batch in the data order."""
    lr: float
    grad_norm: float
    good: bool
    """Whether the parameters were updated."""
    stop: bool
    save: bool
    num_bad: int
    """Bad samples met by all ranks."""
    bad_here: tuple[BadSample, ...]
    """Bad samples of this rank."""
    figures: Mapping[str, float]
    """This step's by name: `loss`, and what the objective gives."""
    counts: Mapping[str, float]
    """Summed over all ranks by name: what adds up over steps."""
    ranks: tuple[RankStats, ...]
    """In the order of ranks."""
    seconds: Mapping[str, float]
    """Where this rank's time went: select, forward, loss, backward, optimizer. Communication is a part of them: the
    loss's and the step's own; what DDP and FSDP2 move goes on beside the model's arithmetic and is no figure of its
    own."""
    launched_at: float
    """time.perf_counter() when the host had launched it."""

    @property
    def loss(self) -> float:
        """The loss that is minimised, over the global batch."""
        return self.figures["loss"]


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """One step's numbers, summed over ranks, on the device, and their names."""

    figures: tuple[str, ...]
    """Names of what the device computed; `loss` is the first."""
    counts: tuple[str, ...]
    """Names of what the host counted."""
    values: Tensor
    """float64: the figures; stop, save, number of bad samples; the counts; every rank's `RankStats`."""


def own_numbers(
    counts: Mapping[str, float], *, num_bad: int, requests: StopOrSave, stats: RankStats, runtime: Runtime
) -> list[float]:
    """What a rank's host adds to the step's sums: all of it is known before the step.

    Args:
        counts: this rank's, by name.
        num_bad: its bad samples.
        requests: what it asks for.
        stats: its own, which stand at its own place among zeros, so that the sum holds those of all.
        runtime: the ranks.
    """
    before = [0.0] * len(stats) * runtime.rank
    after = [0.0] * len(stats) * (runtime.world_size - runtime.rank - 1)
    return [requests.stop, requests.save, num_bad, *counts.values(), *before, *stats, *after]


def sum_over_ranks(
    figures: Mapping[str, Tensor], numbers: Tensor, *, counts: tuple[str, ...], group: ProcessGroup | None
) -> StepSums:
    """One all-reduce, and nothing waits for the device.

    Args:
        figures: this rank's shares, 0-d on the device.
        numbers: `own_numbers`, float64, on the device.
        counts: names of the counts among them.
        group: the ranks; all of them call this, with the same names.
    """
    shares = torch.stack([figure.detach() for figure in figures.values()]).double()
    values = all_reduce(torch.cat([shares, numbers]), "sum", group)
    return StepSums(figures=tuple(figures), counts=counts, values=values)


def check_first(names: Sequence[str], model: nn.Module, runtime: Runtime) -> None:
    """Looks once, after the first backward pass, at what would go wrong in silence; waits for all ranks.

    Args:
        names: of figures and counts, which are summed in their order, and of the objective's figures after an update.
        model: as wrapped; with gradients.
        runtime: the ranks.

    Raises:
        RunError: a name stands twice or names differ between ranks, or under DDP a parameter has no gradient; on all
            ranks alike.
    """
    silent = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    of_ranks = runtime.gather_objects((list(names), silent if isinstance(model, DistributedDataParallel) else []))
    for rank, (other, without) in enumerate(of_ranks):
        if other != of_ranks[0][0]:
            raise RunError(
                f"figures of rank {rank} are {', '.join(other)} and those of rank 0 {', '.join(of_ranks[0][0])}; an "
                "objective must give the same names, in the same order, on every rank"
            )
        if twice := sorted({name for name in other if other.count(name) > 1}):
            raise RunError(f"figures have the same name: {', '.join(twice)}; an objective must give each its own")
        if without:
            raise RunError(
                f"{len(without)} parameters have no gradient, {without[0].removeprefix('module.')} first; an objective "
                "must freeze what no loss reaches (requires_grad_(False) in its __init__)"
            )


def check_outputs(outputs: Any, sizes: Mapping[str, int]) -> None:
    """Compares outputs with their names: they are cut and joined by these.

    Raises:
        RunError: a tensor has another length than its axis, or no axis and more than one element.
    """
    for name, tensor in tensors_of(outputs).items():
        axis = axis_of(name)
        if (tensor.numel() != 1) if axis is None else (tensor.dim() == 0 or len(tensor) != sizes[axis]):
            raise RunError(
                f"output {name} has the shape {tuple(tensor.shape)}, for {sizes['B']} pairs, {sizes['I']} images and "
                f"{sizes['T']} tokens; its name must end in the letter of its first axis (_B, _I, _T), or in none "
                "if it is one number"
            )


class Figures:
    """Shares of figures that come together over the losses and pieces of a step, detached.

    Args:
        several: whether each loss has a figure of its own, `loss_NAME`, beside the weighted sum `loss`.
    """

    def __init__(self, *, several: bool) -> None:
        self._several = several
        self.values: dict[str, Tensor] = {}
        self._owners: dict[str, str] = {}

    def add(self, shares: Mapping[str, Share], weights: Mapping[str, float]) -> Tensor:
        """Takes the shares of losses by name; returns their weighted sum, with its graph."""
        weighted = [share.loss if weights[name] == 1 else weights[name] * share.loss for name, share in shares.items()]
        total = sum(weighted[1:], start=weighted[0])
        self._add("loss", total, of="")
        for name, share in shares.items():
            if share.loss.dtype in (torch.bfloat16, torch.float16):
                raise RunError(f"the loss {name} is {share.loss.dtype}; compute it in at least float32")
            if self._several:
                self._add(f"loss_{name}", share.loss, of="")
            for figure, value in share.figures.items():
                self._add(figure, value, of=name)
        return total

    def _add(self, name: str, value: Tensor, *, of: str) -> None:
        if self._owners.setdefault(name, of) != of:
            raise RunError(f"the loss {of} gives a figure {name!r}, which there is already; give it another name")
        detached = value.detach()
        self.values[name] = self.values[name] + detached if name in self.values else detached


@dataclass(frozen=True, kw_only=True)
class InFlightStep:
    """A step that was launched and not yet read."""

    step: int
    batch: int
    lr: float
    bad_here: tuple[BadSample, ...]
    launched_at: float
    clock: Clock
    sums: StepSums
    updated: tuple[str, ...]
    """Names of the objective's figures after the update."""
    values: Tensor
    """On the host: gradient norm, whether it was good, the figures after the update, and the sums; filled once
    `filled` has happened."""
    filled: torch.cuda.Event | None

    def read(self) -> StepMetrics:
        """Waits for the device to finish this step, and for no later one."""
        if self.filled is not None:
            self.filled.synchronize()
        values = iter(self.values.tolist())
        grad_norm, good = next(values), next(values)
        updated = dict(zip(self.updated, islice(values, len(self.updated)), strict=True))
        figures = dict(zip(self.sums.figures, islice(values, len(self.sums.figures)), strict=True))
        stop, save, num_bad = islice(values, 3)
        counts = dict(zip(self.sums.counts, islice(values, len(self.sums.counts)), strict=True))
        ranks = list(values)
        width = len(RankStats._fields)
        return StepMetrics(
            step=self.step,
            batch=self.batch,
            lr=self.lr,
            grad_norm=grad_norm,
            good=good == 1,
            stop=stop > 0,
            save=save > 0,
            num_bad=int(num_bad),
            bad_here=self.bad_here,
            figures=figures | updated,
            counts=counts,
            ranks=tuple(RankStats(*ranks[at : at + width]) for at in range(0, len(ranks), width)),
            seconds=sections(self.clock.seconds()),
            launched_at=self.launched_at,
        )


def sections(seconds: Mapping[str, float]) -> dict[str, float]:
    """The clock's readings as parts of a step: the backward pass is what the model's time has left."""
    backward = seconds["model and loss"] - seconds["forward"] - seconds["loss"]
    parts = {name: seconds[name] for name in ("forward", "loss", "optimizer")}
    chosen = {"select": seconds["select"]} if "select" in seconds else {}
    return {**parts, **chosen, "backward": backward, "communication": seconds.get("communication", 0.0)}
