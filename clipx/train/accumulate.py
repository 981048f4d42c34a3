"""Gradients of the global batch's loss from micro-batches: exact, in the memory of one. The only accumulation.

Terms are sums over samples, so their gradients simply add up over micro-batches. A coupled loss does not: its gradient
for one pair depends on all others. There the chain rule is cut at the model's outputs (GradCache, arXiv 2101.06983):
(1) forward all micro-batches without a graph and keep the outputs, (2) one call of the coupled losses gives the
gradient with respect to them, (3) forward each micro-batch again, with the same randomness, and push its slice of that
gradient, and its terms, through the model. The last micro-batch of (1) runs with its graph, as the one graph that lives
then, and needs no second pass. Knows neither model nor loss nor accelerator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from clipx.types import Batch, axis_of, cut, join, tensors_of


class Forward(Protocol):
    """The model on one micro-batch."""

    def __call__(self, piece: Batch, number: int, *, for_terms: bool) -> Any:
        """The outputs of the piece with this number; a second call for a piece must give the same."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What is to be minimised, as sums of weighted losses; None if there is none of a kind."""

    coupled: Callable[[Any], Tensor] | None
    """Called once, with the outputs of all micro-batches; returns this rank's share."""
    terms: Callable[[Any], Tensor] | None
    """Called once for each micro-batch, right after its forward pass and with its outputs; returns its share."""


def accumulate(
    pieces: Sequence[Batch],
    *,
    forward: Forward,
    losses: Losses,
    scale: Callable[[Tensor], Tensor],
    no_sync: Callable[[], AbstractContextManager[None]],
) -> None:
    """Adds to the parameters' gradients what the losses of all micro-batches together give.

    With coupled losses k micro-batches take 2k - 1 forward passes and k backward passes: (4k - 1) / 3k of the time of k
    plain ones if a backward pass takes twice a forward's. Without, k of both. Memory: one micro-batch's graph, and with
    coupled losses all outputs with their gradients.

    Args:
        pieces: k pieces of this rank's batch, in order.
        forward: the model; called with a piece and its number.
        losses: at least one.
        scale: a share to the scalar whose backward pass is run; the same factor for every share.
        no_sync: context in which gradients are not synchronised over ranks; around all but the last backward pass, and
            around the forward passes that belong to the others.
    """
    if losses.coupled is not None and len(pieces) > 1:
        _accumulate_cached(pieces, forward=forward, losses=losses, scale=scale, no_sync=no_sync)
        return
    *others, last = range(len(pieces))
    with no_sync():
        for number in others:
            scale(_total(forward(pieces[number], number, for_terms=True), losses)).backward()
    scale(_total(forward(pieces[last], last, for_terms=losses.terms is not None), losses)).backward()


def _total(outputs: Any, losses: Losses) -> Tensor:
    """The weighted sum of all losses of outputs that need no others."""
    if losses.terms is None:
        assert losses.coupled is not None, "an objective without a loss"
        return losses.coupled(outputs)
    terms, tensors = losses.terms(outputs), tensors_of(outputs)
    if not terms.requires_grad:
        terms = _reaching(terms, tensors.values())
    elif losses.coupled is None:
        terms = _reaching(terms, [tensor for name, tensor in tensors.items() if axis_of(name) is None])
    return terms if losses.coupled is None else losses.coupled(outputs) + terms


def _reaching(terms: Tensor, idle: Iterable[Tensor]) -> Tensor:
    """The terms, with a gradient of 0 for outputs that none of them uses in this piece: DDP waits for every one."""
    return sum((0 * tensor.sum() for tensor in idle if tensor.requires_grad), start=terms)


def _accumulate_cached(
    pieces: Sequence[Batch],
    *,
    forward: Forward,
    losses: Losses,
    scale: Callable[[Tensor], Tensor],
    no_sync: Callable[[], AbstractContextManager[None]],
) -> None:
    assert losses.coupled is not None
    *others, last = range(len(pieces))

    def backward(outputs: Any, gradients: Mapping[str, Tensor]) -> None:
        tensors = tensors_of(outputs)
        names = [name for name in gradients if tensors[name].requires_grad]
        roots, starts = [tensors[name] for name in names], [gradients[name] for name in names]
        if losses.terms is not None:
            terms = losses.terms(outputs)
            if not terms.requires_grad:
                terms = _reaching(terms, [tensor for name, tensor in tensors.items() if name not in gradients])
            if terms.requires_grad:
                roots.append(scale(terms))
                starts.append(torch.ones_like(roots[-1]))
        torch.autograd.backward(roots, starts)

    for_terms = losses.terms is not None
    with no_sync():
        with torch.no_grad():
            outputs = [forward(pieces[number], number, for_terms=False) for number in others]
        live = forward(pieces[last], last, for_terms=for_terms)
        cached, leaves = _as_leaves([*outputs, live])
        del outputs
        scale(losses.coupled(cached)).backward()
        # what is one value for the whole batch gets its gradient, that of all pieces together, with the last pass
        once = {name: _gradient(leaf) for name, leaf in leaves.items() if axis_of(name) is None}
        along_axes = {name: _gradient(leaf) for name, leaf in leaves.items() if axis_of(name) is not None}
        gradients = cut(along_axes, [piece.sizes for piece in pieces])
        backward(live, gradients[last])
        del live
        for number in others[:-1]:
            backward(forward(pieces[number], number, for_terms=for_terms), gradients[number])
    final = others[-1]
    backward(forward(pieces[final], final, for_terms=for_terms), gradients[final] | once)


def _as_leaves(outputs: Sequence[Any]) -> tuple[Any, dict[str, Tensor]]:
    """All pieces' outputs in one, cut off from the model, and its tensors by name, each collecting its gradient.

    What the first piece gave without a graph counts: the last one may have more, for its terms.
    """
    first, pieces = outputs[0], [tensors_of(output) for output in outputs]
    with torch.no_grad():
        joined = {name: tensor.detach() for name, tensor in join(pieces).items()}
    leaves = {name: tensor.requires_grad_() for name, tensor in joined.items() if tensor.is_floating_point()}
    return replace(first, **joined), leaves


def _gradient(leaf: Tensor) -> Tensor:
    """What the losses left there; zero if they did not use the tensor, for DDP waits for every parameter's."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
