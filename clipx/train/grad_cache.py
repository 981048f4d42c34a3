"""Exact large-batch gradients in the memory of one micro-batch (GradCache, arXiv 2101.06983). The only accumulation.

A contrastive loss couples all pairs of the global batch, so gradients of micro-batches' own losses do not add up to it.
The chain rule is cut at the embeddings instead: (1) forward all micro-batches without a graph and keep the embeddings,
(2) one loss call gives the gradient with respect to them, (3) forward each micro-batch again, with the same randomness,
and push its slice of that gradient through the towers. The last micro-batch of (1) runs with its graph, as the one
graph that lives then, and needs no second pass. Knows neither model nor loss nor accelerator.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from clipx.types import Batch, Embeddings


def cached_backward(
    micro_batches: Sequence[Batch],
    *,
    forward: Callable[[Batch, int], Embeddings],
    loss: Callable[[Embeddings], Tensor],
    backward: Callable[[Tensor], None],
    no_sync: Callable[[], AbstractContextManager[None]],
) -> Tensor:
    """Adds to the parameters' gradients what the loss of all micro-batches together gives; returns that loss.

    k micro-batches take 2k - 1 forward passes and k backward passes: (4k - 1) / 3k of the time of k plain ones where a
    backward pass takes twice a forward's. Memory: one micro-batch's graph, and all embeddings with their gradients.

    Args:
        micro_batches: k >= 2 pieces of this rank's batch, in order.
        forward: towers; called with a piece and its number, twice for all but the last, and must compute the same then.
        loss: called once with all embeddings of this rank; returns the rank's share.
        backward: backpropagates the share, scaled as the trainer does for every loss.
        no_sync: context in which gradients are not synchronised over ranks; around all but the last backward pass, and
            around the forward passes that belong to the others.
    """
    *others, last = range(len(micro_batches))
    assert others, "one micro-batch is the plain step"
    with no_sync():
        with torch.no_grad():
            pieces = [forward(micro_batches[number], number) for number in others]
        live = forward(micro_batches[last], last)
        cached = _as_leaves([*pieces, live])
        del pieces
        share = loss(cached)
        backward(share)
        share = share.detach()
        sizes = [len(piece) for piece in micro_batches]
        gradients = list(
            zip(_gradient(cached.image_BD).split(sizes), _gradient(cached.text_BD).split(sizes), strict=True)
        )
        torch.autograd.backward([live.image_BD, live.text_BD], gradients[last])
        for number in others[:-1]:
            embeddings = forward(micro_batches[number], number)
            torch.autograd.backward([embeddings.image_BD, embeddings.text_BD], gradients[number])
    final = others[-1]
    embeddings = forward(micro_batches[final], final)
    outputs = [embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale]
    output_gradients = [*gradients[final], _gradient(cached.logit_scale)]  # scale and bias: all pieces' at once
    if embeddings.logit_bias is not None and cached.logit_bias is not None:
        outputs.append(embeddings.logit_bias)
        output_gradients.append(_gradient(cached.logit_bias))
    torch.autograd.backward(outputs, output_gradients)
    return share


def _as_leaves(pieces: Sequence[Embeddings]) -> Embeddings:
    """All pieces in one, cut off from the towers, each tensor collecting its gradient."""
    bias = pieces[0].logit_bias
    return Embeddings(
        image_BD=torch.cat([piece.image_BD.detach() for piece in pieces]).requires_grad_(),
        text_BD=torch.cat([piece.text_BD.detach() for piece in pieces]).requires_grad_(),
        logit_scale=pieces[0].logit_scale.detach().clone().requires_grad_(),
        logit_bias=None if bias is None else bias.detach().clone().requires_grad_(),
    )


def _gradient(leaf: Tensor) -> Tensor:
    """What the loss left there; zero where it did not use the tensor, for DDP waits for every parameter's."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
