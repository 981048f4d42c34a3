"""Text towers: flat token ids with lengths in, one unnormalised embedding per text out.

`TextTower` is CLIP's text Transformer (arXiv 2103.00020, section 2.4): pre-LN, causal, learned positions, pooled at the
end token. `HuggingFaceTextTower` wraps a text encoder from transformers, and this file alone imports that library for
models. Both take the packed interface; inside they lay texts out as (B, L), which is exact: under a causal mask, or
with an attention mask, what stands after a text's end cannot change its result.

Shape suffixes: B texts, L positions, T real tokens of all texts, H heads, K channels of a head, C channels,
D embedding.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.model import HuggingFaceTextConfig, TextConfig, TransformerTextConfig
from clipx.errors import InputError
from clipx.models.initialise import initialise_blocks

Pool = Literal["cls", "mean", "last"]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation that OpenAI's CLIP weights were trained with (arXiv 1606.08415, sec. 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "quick_gelu": quick_gelu}


def unpack_tokens(tokens_T: Tensor, lengths_B: Tensor, *, max_length: int, fill: int = 0) -> Tensor:
    """Lays flat texts out as rows, without the host waiting for the device.

    Args:
        tokens_T: int64 (T,), the texts one after the other.
        lengths_B: int64 (B,), at least 1 each, T in all.
        max_length: columns; at least the longest text.
        fill: id at the positions after a text's end.

    Returns:
        int64 (B, max_length).
    """
    position_L = torch.arange(max_length, device=tokens_T.device)
    start_B = lengths_B.cumsum(0) - lengths_B
    source_BL = (start_B[:, None] + position_L).clamp_(max=tokens_T.shape[0] - 1)
    return tokens_T[source_BL].masked_fill(position_L >= lengths_B[:, None], fill)


class Attention(nn.Module):
    """Causal self-attention with one fused projection for queries, keys and values, in this order."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Maps (B, L, C) to (B, L, C)."""
        q_BHLK, k_BHLK, v_BHLK = self.qkv(x_BLC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHLK = functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)
        return self.proj(mixed_BHLK.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, width: int, *, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = activation

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Maps (B, L, C) to (B, L, C)."""
        return self.fc2(self.activation(self.fc1(x_BLC)))


class Block(nn.Module):
    """Pre-LN residual block; its parameters bear the names of timm's ViT blocks, so that one key map serves both."""

    def __init__(self, width: int, *, heads: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width, hidden=hidden, activation=activation)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Maps (B, L, C) to (B, L, C)."""
        x_BLC = x_BLC + self.attn(self.norm1(x_BLC))
        return x_BLC + self.mlp(self.norm2(x_BLC))


class TextTower(nn.Module):
    """CLIP's text Transformer with a bias-free projection; a text's result is that of its last token.

    Args:
        vocab_size: rows of the token embedding.
        context_length: most tokens of a text.
        width: channels C.
        layers: blocks.
        heads: attention heads; divides width.
        mlp_ratio: hidden over outer channels of the feed-forward layers.
        activation: "gelu" (exact) or "quick_gelu".
        embed_dim: D of the shared space.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        context_length: int,
        width: int,
        layers: int,
        heads: int,
        embed_dim: int,
        mlp_ratio: float = 4.0,
        activation: Literal["gelu", "quick_gelu"] = "gelu",
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context_length, width)
        shape = {"heads": heads, "hidden": int(width * mlp_ratio)}
        self.blocks = nn.ModuleList(Block(width, activation=ACTIVATIONS[activation], **shape) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """CLIP's initialisation (the numbers of OpenAI's published model code); biases 0, gains 1."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)
        initialise_blocks(self.blocks)
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)

    def forward(self, tokens_T: Tensor, lengths_B: Tensor, *, max_length: int) -> Tensor:
        """Embeds B texts given as one flat array.

        Args:
            tokens_T: int64 (T,), real tokens only, start and end tokens included.
            lengths_B: int64 (B,), at least 1 each.
            max_length: at least the longest text, at most `context_length`; known on the host.

        Returns:
            (B, D), not normalised.
        """
        assert max_length <= self.context_length, f"max_length={max_length} above {self.context_length}"
        tokens_BL = unpack_tokens(tokens_T, lengths_B, max_length=max_length)
        x_BLC = self.token_embedding(tokens_BL) + self.position_embedding.weight[:max_length]
        for block in self.blocks:
            x_BLC = block(x_BLC)
        rows_B = torch.arange(lengths_B.shape[0], device=lengths_B.device)
        # The norm acts on each token alone, so normalising the pooled tokens only gives the same result for less.
        return self.projection(self.norm(x_BLC[rows_B, lengths_B - 1]))


class HuggingFaceTextTower(nn.Module):
    """A transformers encoder, padded to the batch's longest text, pooled, and projected without bias.

    Args:
        encoder: maps (input_ids, attention_mask) to an output with `last_hidden_state`.
        hidden_size: its channels C.
        pool: "cls" the first hidden state, "mean" the mean of the real ones, "last" the last real one.
        pad_token_id: id that its padding bears (some encoders count positions by it).
        embed_dim: D of the shared space.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        hidden_size: int,
        pool: Pool,
        pad_token_id: int,
        embed_dim: int,
        context_length: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool: Pool = pool
        self.pad_token_id = pad_token_id
        self.context_length = context_length
        self.projection = nn.Linear(hidden_size, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=hidden_size**-0.5)

    def forward(self, tokens_T: Tensor, lengths_B: Tensor, *, max_length: int) -> Tensor:
        """As `TextTower.forward`."""
        assert max_length <= self.context_length, f"max_length={max_length} above {self.context_length}"
        tokens_BL = unpack_tokens(tokens_T, lengths_B, max_length=max_length, fill=self.pad_token_id)
        real_BL = torch.arange(max_length, device=lengths_B.device) < lengths_B[:, None]
        output = self.encoder(input_ids=tokens_BL, attention_mask=real_BL.long())
        return self.projection(self._pooled(output.last_hidden_state, real_BL, lengths_B))

    def _pooled(self, x_BLC: Tensor, real_BL: Tensor, lengths_B: Tensor) -> Tensor:
        match self.pool:
            case "cls":
                return x_BLC[:, 0]
            case "mean":
                return (x_BLC * real_BL[..., None]).sum(1) / lengths_B[:, None]
            case "last":
                return x_BLC[torch.arange(x_BLC.shape[0], device=x_BLC.device), lengths_B - 1]
            case unknown:
                assert_never(unknown)


def build_text_tower(config: TextConfig, *, vocab_size: int, embed_dim: int) -> nn.Module:
    """The text tower that the config describes, on the CPU, from torch's current generator.

    Args:
        config: which tower.
        vocab_size: ids that the tokenizer can give, 0 to vocab_size - 1.
        embed_dim: D of the shared space.

    Raises:
        InputError: a transformers model that cannot be loaded, is no text encoder, or is too small for the tokenizer or
            the context length.
    """
    match config:
        case TransformerTextConfig():
            return TextTower(
                vocab_size,
                context_length=config.context_length,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                activation=config.activation,
                embed_dim=embed_dim,
            )
        case HuggingFaceTextConfig():
            return _build_huggingface(config, vocab_size=vocab_size, embed_dim=embed_dim)
        case unknown:
            assert_never(unknown)


def _build_huggingface(config: HuggingFaceTextConfig, *, vocab_size: int, embed_dim: int) -> HuggingFaceTextTower:
    encoder = _load_encoder(config)
    shape = encoder.config
    embedding = encoder.get_input_embeddings()
    if embedding.num_embeddings < vocab_size:
        raise InputError(
            f"model.text.name={config.name} embeds {embedding.num_embeddings} tokens, the tokenizer has {vocab_size}; "
            f"set model.text.tokenizer to the model's own"
        )
    most = getattr(shape, "max_position_embeddings", None) or config.context_length
    if config.context_length > most:
        raise InputError(
            f"model.text.context_length={config.context_length} is above the {most} positions of {config.name}; "
            f"set at most {most}"
        )
    return HuggingFaceTextTower(
        encoder,
        hidden_size=shape.hidden_size,
        pool=config.pool,
        pad_token_id=shape.pad_token_id if shape.pad_token_id is not None else 0,
        embed_dim=embed_dim,
        context_length=config.context_length,
    )


def _load_encoder(config: HuggingFaceTextConfig) -> Any:
    """transformers' encoder in float32, without dropout and without layers that the tower does not use."""
    from transformers import AutoConfig, AutoModel

    try:
        shape = AutoConfig.from_pretrained(config.name)
        if hasattr(shape, "vision_config") or not hasattr(shape, "hidden_size"):
            raise InputError(f"model.text.name={config.name}: a {shape.model_type} model is no text encoder; name one")
        for name, value in shape.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(shape, name, 0.0)
        if config.pretrained:
            model = AutoModel.from_pretrained(config.name, config=shape, dtype=torch.float32)
        else:
            model = AutoModel.from_config(shape, dtype=torch.float32)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        kind = "folder" if Path(config.name).exists() else "hub name (or folder that is not there)"
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model.text.name={config.name}: transformers cannot load this {kind}: {reason}") from error
    encoder = model.get_encoder() if shape.is_encoder_decoder else model
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # a parameter without gradient would stop DDP
    return encoder
