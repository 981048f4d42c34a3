"""Text towers: from flat token ids with lengths to one unnormalised embedding per text.

`TextTower` is a pre-LN Transformer with learned positions, pooled at a text's last token. Causal, and with the end
token as the last, it is CLIP's (arXiv 2103.00020, section 2.4); not causal, and with padding that counts as text,
SigLIP's (arXiv 2303.15343). It runs packed: its linear layers get the tokens of texts only, and the last block computes
little more than the last tokens.

Shape suffixes: B texts, T tokens of all texts, R tokens that a block returns, H heads, K channels of a head,
C channels, D embedding.
"""

from collections.abc import Callable
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.model import Activation, HuggingFaceTextConfig, Projection, TextConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.models.initialise import initialise_blocks
from clipx.models.packing import (
    Packing,
    attend_once,
    attend_packed,
    group_by_length,
    pack,
    pad_groups,
    pad_to_bucket,
    take,
)
from clipx.models.projection import build_projection, initialise_projection


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP weights (arXiv 1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation of GELU by a hyperbolic tangent, in SigLIP's weights (arXiv 1606.08415, section 2)."""
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "quick_gelu": quick_gelu,
    "gelu_tanh": gelu_tanh,
}


class Attention(nn.Module):
    """Self-attention with one fused projection to queries, keys and values, in this order."""

    one_tile: torch.dtype | None = None
    """The dtype in which `one_tile_attention` computes it (`choose_attention`); None means never."""

    def __init__(self, width: int, *, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_TC: Tensor, packing: Packing, rows_R: Tensor | None = None) -> Tensor:
        """Maps (T, C) to (T, C), or to (R, C): only the rows `rows_R`, the last tokens of the first R texts."""
        qkv_T3HK = self.qkv(x_TC).unflatten(-1, (3, self.heads, -1))
        if rows_R is None:
            mixed_RHK = attend_packed(qkv_T3HK, packing, causal=self.causal, one_tile=self.one_tile)
        else:
            q_THK, k_THK, v_THK = qkv_T3HK.unbind(1)
            mixed_RHK = attend_once(take(q_THK, rows_R), k_THK, v_THK, packing)
        return self.proj(mixed_RHK.flatten(1))


class Mlp(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, *, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x_TC: Tensor) -> Tensor:
        """Maps (T, C) to (T, C)."""
        return self.fc2(self.activation(self.fc1(x_TC)))


class Block(nn.Module):
    """Pre-LN residual block; its parameters have the names of timm's ViT blocks, so that one key map fits both."""

    def __init__(
        self, width: int, *, heads: int, hidden: int, activation: Callable[[Tensor], Tensor], causal: bool, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads=heads, causal=causal)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden=hidden, activation=activation)

    def forward(self, x_TC: Tensor, packing: Packing, last_R: Tensor | None = None) -> Tensor:
        """Maps (T, C) to (T, C), or to (R, C): only the rows `last_R`, without the work for the others.

        `last_R` are the last tokens of the first R texts, int64 (R,).
        """
        x_RC = x_TC if last_R is None else take(x_TC, last_R)
        x_RC = x_RC + self.attn(self.norm1(x_TC), packing, last_R)
        return x_RC + self.mlp(self.norm2(x_RC))


class TextTower(nn.Module):
    """A text Transformer with a projection; it returns the result at each text's last token.

    Args:
        config: sizes and kind of the blocks.
        vocab_size: number of the tokenizer's ids.
        embed_dim: D.
        projection: from the last token's channels to the shared space.
    """

    is_padded: bool
    """Whether every text has as many tokens as the phase admits, padding included."""
    bucketed: bool = False
    """Whether texts are padded to few different shapes (`pad_to_bucket`), for compiled blocks."""

    def __init__(
        self, config: TransformerTextConfig, *, vocab_size: int, embed_dim: int, projection: Projection = "linear"
    ) -> None:
        super().__init__()
        width = config.width
        self.context_length = config.context_length
        self.is_padded = config.pad is not None
        self.token_embedding = nn.Embedding(config.vocab_size or vocab_size, width)
        self.position_embedding = nn.Embedding(config.context_length, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads=config.heads,
                hidden=int(width * config.mlp_ratio),
                activation=ACTIVATIONS[config.activation],
                causal=config.causal,
                eps=config.eps,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.projection = build_projection(projection, width, embed_dim, tower="text", bias=config.bias)
        # CLIP's initialisation, with the constants of OpenAI's published model code; biases are 0, gains are 1.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        initialise_blocks(self.blocks)
        initialise_projection(self.projection)

    def forward(self, tokens_T: Tensor, lengths_B: Tensor, *, max_length: int) -> Tensor:
        """Embeds B texts given as one flat array.

        Args:
            tokens_T: int64 (T,), real tokens only, start and end tokens included.
            lengths_B: int64 (B,), at least 1 each; their sum is T.
            max_length: at least the longest text, at most `context_length`; known on the host.

        Returns:
            (B, D), not normalised.
        """
        assert max_length <= self.context_length, f"max_length={max_length} above {self.context_length}"
        num_texts, groups, index_B = lengths_B.shape[0], list[int](), None
        if self.bucketed:
            tokens_T, lengths_B, max_length = pad_to_bucket(
                tokens_T, lengths_B, max_length=max_length, limit=self.context_length
            )
        elif tokens_T.device.type == "cpu" and not torch.compiler.is_compiling():
            tokens_T, lengths_B, groups, index_B = group_by_length(tokens_T, lengths_B)
            if torch.is_autocast_enabled("cpu"):
                tokens_T, lengths_B, groups = pad_groups(tokens_T, lengths_B, groups, limit=self.context_length)
        packing = pack(lengths_B, num_tokens=tokens_T.shape[0], max_length=max_length, groups=groups)
        x_TC = self.token_embedding(tokens_T) + self.position_embedding(packing.position_T)
        *first, last = self.blocks
        for block in first:
            x_TC = block(x_TC, packing)
        x_BD = self.projection(self.norm(last(x_TC, packing, packing.last_B[:num_texts])))
        return x_BD if index_B is None else take(x_BD, index_B)


def build_text_tower(
    config: TextConfig, *, vocab_size: int, embed_dim: int, projection: Projection = "linear"
) -> nn.Module:
    """Builds a text tower from its config, on the CPU, with weights from torch's current generator.

    Args:
        config: of the tower.
        vocab_size: number of the tokenizer's ids.
        embed_dim: of the shared space.
        projection: to the shared space, where the tower's config names none.

    Raises:
        InputError: a transformers model cannot be loaded, is not a text encoder, or is too small for the tokenizer or
            the context length; a `vocab_size` below the tokenizer's; or a tower without projection has other channels
            than the shared space.
    """
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "embed_dim": embed_dim}
    match config:
        case TransformerTextConfig():
            if config.vocab_size is not None and config.vocab_size < vocab_size:
                raise InputError(
                    f"model.text.vocab_size={config.vocab_size} is below the {vocab_size} ids of the tokenizer "
                    f"{config.tokenizer}; set at least {vocab_size}, or null"
                )
            return TextTower(config, projection=config.projection or projection, **sizes)
        case HuggingFaceTextConfig():
            from clipx.models.huggingface_text import build_huggingface_tower

            return build_huggingface_tower(config, projection=config.projection or projection, **sizes)
        case unknown:
            assert_never(unknown)
