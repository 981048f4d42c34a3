"""Exact large-batch gradients in the memory of one micro-batch (GradCache, arXiv 2101.06983). The only accumulation.

A contrastive loss couples all pairs of the global batch, so gradients of micro-batches' own losses do not add up to it.
The chain rule is cut at the embeddings instead: (1) forward all micro-batches without a graph and keep the embeddings,
(2) one loss call gives the gradient with respect to them, (3) forward each micro-batch again, with the same randomness,
and push its slice of that gradient through the towers. Knows neither model nor loss nor accelerator.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

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

    Args:
        micro_batches: k pieces of this rank's batch, in order.
        forward: towers; called twice per piece with its number, and must compute the same both times.
        loss: called once with all embeddings of this rank; returns the rank's share.
        backward: backpropagates the share, scaled as the trainer does for every loss.
        no_sync: context in which gradients are not synchronised over ranks; left for the last piece.
    """
    with torch.no_grad(), no_sync():
        pieces = [forward(piece, number) for number, piece in enumerate(micro_batches)]
    cached = _as_leaves(pieces)
    share = loss(cached)
    backward(share)
    last = len(micro_batches) - 1
    sizes = [len(piece) for piece in micro_batches]
    gradients = list(zip(_gradient(cached.image_BD).split(sizes), _gradient(cached.text_BD).split(sizes), strict=True))
    for number, piece in enumerate(micro_batches):
        with nullcontext() if number == last else no_sync():
            embeddings = forward(piece, number)
            outputs = [embeddings.image_BD, embeddings.text_BD]
            output_gradients = list(gradients[number])
            if number == last:  # scale and bias are the same leaf in every piece, so their whole gradient enters once
                outputs.append(embeddings.logit_scale)
                output_gradients.append(_gradient(cached.logit_scale))
                if embeddings.logit_bias is not None and cached.logit_bias is not None:
                    outputs.append(embeddings.logit_bias)
                    output_gradients.append(_gradient(cached.logit_bias))
            torch.autograd.backward(outputs, output_gradients)
    return share.detach()


def _as_leaves(pieces: Sequence[Embeddings]) -> Embeddings:
    """All pieces in one, cut off from the towers, each tensor collecting its gradient."""
    bias = pieces[0].logit_bias
    return Embeddings(
        image_BD=torch.cat([piece.image_BD for piece in pieces]).requires_grad_(),
        text_BD=torch.cat([piece.text_BD for piece in pieces]).requires_grad_(),
        logit_scale=pieces[0].logit_scale.detach().clone().requires_grad_(),
        logit_bias=None if bias is None else bias.detach().clone().requires_grad_(),
    )


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "the loss did not use this tensor"
    return leaf.grad
