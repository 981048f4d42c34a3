"""Which kernel computes attention: each candidate is first compared with float64, then timed, on this device.

The inputs are random, once of the usual size, once with all logits near -120, where kernels that pad keys with zeros
give NaN gradients. A candidate that raises, or whose results are not finite or further from float64's than roundings
explain, is left out.

Shape suffixes: T tokens of all sequences, N of one, H heads, E channels of a head.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.distributed.collectives import gather_objects, rank
from clipx.errors import RunError

log = logging.getLogger(__name__)

Attention = Callable[[Sequence[int]], Callable[[Tensor], Tensor]]
"""The lengths of sequences to what maps their packed (T, 3, H, E) to (T, H, E)."""
K = TypeVar("K", bound=str)
_REPEATS = 8
_SHARE = 4
"""Largest error of a whole tensor, in roundings of its norm; that of an entry is one of the sum of its terms' sizes."""
_HEAD_START = 20_000_000
"""Cycles, about 10 ms, that the device waits, so that the host launches all repeats before the first one begins."""

_results: dict[tuple["Shape", str], float | str] = {}
_broken: dict[tuple[bool, str], str] = {}
"""What this process has found. A phase with shapes of an earlier one keeps its kernels. What has raised, with a causal
mask or without, is not tried again: where cuDNN cannot start, its first call raises and its second one crashes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sequences as the tower will have them."""

    name: str
    """For the log."""
    lengths: tuple[int, ...]
    """Of the sequences that are timed; the first `num_checked` are compared with float64."""
    num_checked: int
    heads: int
    channels: int
    causal: bool
    dtype: torch.dtype
    device: torch.device


def fastest(shape: Shape, candidates: Mapping[K, Attention], *, group: ProcessGroup | None) -> K | None:
    """The fastest candidate that is right on every rank, by the times of rank 0; the log says what was measured.

    Returns:
        Its name, the same on all ranks; None if no candidate is right.
    """
    found: dict[K, float | str] = {name: _result(shape, name, attention) for name, attention in candidates.items()}
    by_rank = gather_objects(found, group)
    times: dict[K, float] = {}
    for name in candidates:
        results = [results.get(name, "a rank does not have it") for results in by_rank]  # of another cuDNN
        problem = next((result for result in results if isinstance(result, str)), None)
        if problem is None:
            times[name] = results[0]
        elif rank(group) == 0:
            log.warning("attention of %s: %s is left out (%s)", shape.name, name, problem)
    chosen = min(times, key=lambda name: times[name], default=None)
    if rank(group) == 0 and chosen is None:
        log.warning("attention of %s: no kernel was right, so it is left to torch; do not trust it", shape.name)
    elif rank(group) == 0:
        measured = ", ".join(f"{name} {times[name]:.3f}" for name in sorted(times, key=lambda name: times[name]))
        log.info("attention of %s: %s (ms for %d: %s)", shape.name, chosen, len(shape.lengths), measured)
    return chosen


def _result(shape: Shape, name: str, attention: Attention) -> float | str:
    """Milliseconds of a forward and a backward pass, or why the candidate is left out."""
    if (shape.causal, name) in _broken:
        return _broken[shape.causal, name]
    if (shape, name) not in _results:
        try:
            _results[shape, name] = _try(shape, attention)
        except torch.OutOfMemoryError as error:  # says nothing of the kernel
            return _one_line(error)
        except Exception as error:  # torch, Triton, cuDNN and the driver raise their own
            _check_device(shape, name, error)
            _broken[shape.causal, name] = _one_line(error)
            return _broken[shape.causal, name]
    return _results[shape, name]


def _check_device(shape: Shape, name: str, error: Exception) -> None:
    """Ends the run after an error that the device does not get over: all that comes later would fail, elsewhere."""
    try:
        torch.cuda.synchronize(shape.device)
    except RuntimeError:
        raise RunError(
            f"attention of {shape.name}: trying {name} broke the CUDA device ({_one_line(error)}); start again with "
            "attention=flash, which tries none"
        ) from error


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"


def _try(shape: Shape, attention: Attention) -> float | str:
    """Milliseconds, or how the candidate differs from float64."""
    for logit in (0.0, -120.0):
        problem = _problem(shape, attention, logit=logit)
        if problem is not None:
            return problem
    return _milliseconds(shape, attention)


def _problem(shape: Shape, attention: Attention, *, logit: float) -> str | None:
    """What is wrong with value or gradients for logits around `logit`; None if nothing is."""
    qkv_T3HE, weights_THE = _example(shape, logit=logit)
    mixed_THE = attention(shape.lengths[: shape.num_checked])(qkv_T3HE.requires_grad_())
    (gradient_T3HE,) = torch.autograd.grad(mixed_THE, qkv_T3HE, weights_THE)
    eps = torch.finfo(shape.dtype).eps
    names = ("results", "gradients of queries", "of keys", "of values")
    found_by_name = zip(names, (mixed_THE, *gradient_T3HE.unbind(1)), _expected(shape, logit=logit), strict=True)
    for name, found, (wanted, size) in found_by_name:
        if not found.isfinite().all():
            return f"{name} for logits near {logit:.0f} are not finite"
        error = (found.detach().cpu().double() - wanted).abs()
        is_wrong = (error > eps * (size + size.mean())).any()
        if not logit:  # large keys cancel in a gradient, so that its norm says nothing of roundings
            is_wrong |= error.norm() > _SHARE * eps * wanted.norm()
        if is_wrong:
            return f"{name} for logits near {logit:.0f} are wrong"
    return None


def _example(shape: Shape, *, logit: float) -> tuple[Tensor, Tensor]:
    """Queries, keys and values whose logits are about `logit`, and gradients of the result."""
    qkv_T3HE, weights_THE = _draw(shape, sum(shape.lengths[: shape.num_checked]))
    if logit:
        qkv_T3HE[:, :2] *= 0.1
        qkv_T3HE[:, 0, :, 0], qkv_T3HE[:, 1, :, 0] = 1.0, logit * shape.channels**0.5
    return qkv_T3HE, weights_THE


@lru_cache(maxsize=2)  # all candidates of a shape ask for the same two
def _expected(shape: Shape, *, logit: float) -> list[tuple[Tensor, Tensor]]:
    """What float64 gives, on the host: many GPUs are slow in it, and a large one's memory belongs to the run."""
    qkv_T3HE, weights_THE = (x.cpu().double() for x in _example(shape, logit=logit))
    return _textbook(qkv_T3HE, weights_THE, shape.lengths[: shape.num_checked], causal=shape.causal)


def _draw(shape: Shape, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Normal queries, keys and values, and gradients of the result; torch's global generators do not change."""
    generator = torch.Generator(shape.device).manual_seed(num_tokens)
    size = (num_tokens, 4, shape.heads, shape.channels)
    drawn = torch.randn(size, generator=generator, dtype=shape.dtype, device=shape.device)
    return drawn[:, :3].contiguous(), drawn[:, 3].contiguous()


def _textbook(
    qkv_T3HE: Tensor, weights_THE: Tensor, lengths: Sequence[int], *, causal: bool
) -> list[tuple[Tensor, Tensor]]:
    """Result and gradients of queries, keys and values, each with the sum of its terms' sizes.

    A rounding of relative size u of every factor changes an entry by a few u times this sum.
    """
    sequences = zip(qkv_T3HE.split(list(lengths)), weights_THE.split(list(lengths)), strict=True)
    parts = [_textbook_of_one(qkv_N3HE, weights_NHE, causal=causal) for qkv_N3HE, weights_NHE in sequences]
    return [
        (torch.cat([value_NHE for value_NHE, _ in of_all]), torch.cat([size_NHE for _, size_NHE in of_all]))
        for of_all in zip(*parts, strict=True)
    ]


def _textbook_of_one(qkv_N3HE: Tensor, weights_NHE: Tensor, *, causal: bool) -> list[tuple[Tensor, Tensor]]:
    q, k, v, weights = (x_NHE.transpose(0, 1) for x_NHE in (*qkv_N3HE.unbind(1), weights_NHE))  # (H, N, E)
    scale = q.shape[-1] ** -0.5
    logits_HNN = q @ k.mT * scale
    if causal:
        logits_HNN = logits_HNN.masked_fill(torch.ones_like(logits_HNN[0], dtype=torch.bool).triu(1), -torch.inf)
    p_HNN = logits_HNN.softmax(-1)
    dp_HNN, dp_size_HNN = weights @ v.mT, weights.abs() @ v.abs().mT
    ds_HNN = p_HNN * (dp_HNN - (p_HNN * dp_HNN).sum(-1, keepdim=True)) * scale
    ds_size_HNN = p_HNN * (dp_size_HNN + (p_HNN * dp_size_HNN).sum(-1, keepdim=True)) * scale
    found = [
        (p_HNN @ v, p_HNN @ v.abs()),
        (ds_HNN @ k, ds_size_HNN @ k.abs()),
        (ds_HNN.mT @ q, ds_size_HNN.mT @ q.abs()),
        (p_HNN.mT @ weights, p_HNN.mT @ weights.abs()),
    ]
    return [(value.transpose(0, 1), size.transpose(0, 1)) for value, size in found]


def _milliseconds(shape: Shape, attention: Attention) -> float:
    """Device time of a forward and a backward pass."""
    qkv_T3HE, weights_THE = _draw(shape, sum(shape.lengths))
    qkv_T3HE.requires_grad_()
    attend = attention(shape.lengths)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(2 + _REPEATS):
        if number == 2:
            torch.cuda._sleep(_HEAD_START)
            begin.record()
        torch.autograd.grad(attend(qkv_T3HE), qkv_T3HE, weights_THE)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / _REPEATS
