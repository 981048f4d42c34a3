"""The collectives that clipx uses, each with an explicit process group; alone (`group=None`) each returns its input.

All ranks of a group make the same calls, with tensors of equal shape and dtype. NCCL and gloo both support all of them
from torch 2.11 on. Gradients flow through `all_gather_with_gradient` alone: clipx's losses use the others and write
their own backward pass.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch.autograd import Function
from torch.distributed import ProcessGroup

from clipx.errors import RunError

P = ParamSpec("P")
T = TypeVar("T")

_observer: Callable[[], AbstractContextManager[None]] = nullcontext
_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


@contextmanager
def observed(observer: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Runs each collective of this module on tensors in a context of `observer`, which may measure its time.

    For `ring_shift_async` the context is entered for the wait only: until then other work continues.
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def _observable(collective: Callable[P, T]) -> Callable[P, T]:
    @wraps(collective)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _observer():
            return collective(*args, **kwargs)

    return call


def rank(group: ProcessGroup | None) -> int:
    """The index of this process in the group, from 0."""
    return 0 if group is None else dist.get_rank(group)


def world_size(group: ProcessGroup | None) -> int:
    """W, the number of processes in the group."""
    return 1 if group is None else dist.get_world_size(group)


def named_group(name: str) -> ProcessGroup | None:
    """The group with this `group_name`; None for the empty name. Registered ops can take a name, but no object."""
    return _resolve_process_group(name) if name else None  # type: ignore[arg-type]


@_observable
def all_gather(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """All ranks' tensors along the first dimension, in the order of ranks: (B, ...) to (W B, ...), a new tensor."""
    if group is None:
        return x
    gathered = x.new_empty((world_size(group) * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(gathered, x.contiguous(), group=group)
    return gathered


@_observable
def reduce_scatter_sum(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """This rank's part of the sum over ranks: (W B, ...) to (B, ...), summed in x's dtype, a new tensor."""
    if group is None:
        return x
    size = world_size(group)
    assert x.shape[0] % size == 0, f"{x.shape[0]} rows on {size} ranks"
    part = x.new_empty((x.shape[0] // size, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x.contiguous(), op=dist.ReduceOp.SUM, group=group)
    return part


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter_sum(gradient, ctx.group), None


def all_gather_with_gradient(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """`all_gather` through which gradients flow, for losses written by users and for references.

    The backward pass is a reduce-scatter: each rank gets the sum, over all ranks, of the gradients of its own rows. So
    each rank must return its share of the loss, with the shares adding up to the loss of the global batch. If each rank
    returned the whole loss instead, gradients would be W times too large. All ranks must run the backward pass.
    """
    if group is None:
        return x
    gathered: Tensor = _AllGather.apply(x, group)
    return gathered


@_observable
def all_reduce(x: Tensor, op: Literal["sum", "max"], group: ProcessGroup | None) -> Tensor:
    """Combines x over the ranks, in place, and returns it."""
    if group is not None:
        dist.all_reduce(x, op=_OPERATIONS[op], group=group)
    return x


@_observable
def broadcast_from_rank0(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Rank 0's x on every rank, in place; returns it."""
    if group is not None:
        dist.broadcast(x, group=group, group_src=0)
    return x


@_observable
def all_to_all(x: Tensor, *, sent: Sequence[int], received: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """Rows of x to the ranks to which they belong: (sum of `sent`, ...) to (sum of `received`, ...), a new tensor.

    Args:
        x: the rows for rank 0, then those for rank 1, and so on.
        sent: rows for each rank.
        received: rows that come from each rank, and stand in the order of ranks.
        group: the ranks.
    """
    if group is None:
        return x
    rows = x.new_empty((sum(received), *x.shape[1:]))
    dist.all_to_all_single(rows, x.contiguous(), list(received), list(sent), group=group)
    return rows


def ring_shift_async(x: Tensor, group: ProcessGroup | None) -> Callable[[], Tensor]:
    """Starts to send x to the next rank; the last rank sends to rank 0.

    Returns:
        A function that waits for the previous rank's tensor and returns it (x itself on one rank). Do not change x
        before it has returned.
    """
    size = world_size(group)
    if group is None or size == 1:
        return lambda: x
    sent, received = x.contiguous(), x.new_empty(x.shape)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, sent, group=group, group_peer=(rank(group) + 1) % size),
            dist.P2POp(dist.irecv, received, group=group, group_peer=(rank(group) - 1) % size),
        ]
    )

    @_observable
    def wait() -> Tensor:
        for work in works:
            work.wait()
        return received

    return wait


def gather_objects(value: Any, group: ProcessGroup | None) -> list[Any]:
    """Every rank's (picklable) value, in the order of ranks, on every rank."""
    if group is None:
        return [value]
    values: list[Any] = [None] * world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


@contextmanager
def raise_on_all_ranks(group: ProcessGroup | None) -> Iterator[None]:
    """Raises an error of one rank's block on all ranks, after the block, so that no rank waits for one that has left.

    The block must not communicate. The rank that has the error raises it; the others raise a copy.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as problem:
        error = problem
    for result in (error, *gather_objects(None if error is None else _copied(error), group)):
        if result is not None:
            raise result


def rank0_first(work: Callable[[], T], group: ProcessGroup | None) -> T:
    """What `work` returns on this rank: rank 0 does it before the others begin, and they find what it left.

    The work must not communicate. An error of one rank is raised on all ranks.
    """
    for is_turn_of_rank0 in (True, False):
        with raise_on_all_ranks(group):
            if (rank(group) == 0) == is_turn_of_rank0:
                result = work()
    return result


def _copied(error: Exception) -> Exception:
    """A copy of the error, or a `RunError` with its text if it cannot be pickled, like huggingface_hub's errors."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # a foreign class may raise anything here
        return RunError(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return copy
