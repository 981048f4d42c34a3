"""First weights: CLIP's for Transformer blocks, and those of single linear layers."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def initialise_blocks(blocks: Iterable[Any]) -> None:
    """Initialises a stack of pre-LN blocks (`attn.qkv`, `attn.proj`, `mlp.fc1`, `mlp.fc2`) like OpenAI's CLIP code.

    Weights are normal. With C channels and N blocks the standard deviation is C^-0.5 for queries, keys and values,
    (2C)^-0.5 for the first feed-forward layer, and (2 C N)^-0.5 for the two layers that write into the residual stream,
    so that its variance does not grow with depth. Biases are 0.
    """
    stack = list(blocks)
    for block in stack:
        width = block.attn.proj.out_features
        residual_std = (2 * width * len(stack)) ** -0.5
        deviations: tuple[tuple[nn.Linear, float], ...] = (
            (block.attn.qkv, width**-0.5),
            (block.attn.proj, residual_std),
            (block.mlp.fc1, (2 * width) ** -0.5),
            (block.mlp.fc2, residual_std),
        )
        for linear, std in deviations:
            nn.init.normal_(linear.weight, std=std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)


def initialise_linear(linear: nn.Linear, *, gain: float = 1.0) -> None:
    """Normal weights with a standard deviation of `gain` (inputs)^-0.5, so that variances are kept; the bias is 0."""
    nn.init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
