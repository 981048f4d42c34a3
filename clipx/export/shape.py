"""The sizes of a trained model, read from its live modules, in the terms that transformers and open_clip share."""

import re
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from clipx.config.schema import TransformerTextConfig
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.models.text_tower import TextTower
from clipx.pretrained import Pretrained

EXPORTABLE = "exportable are timm's vit_*_clip_* image towers with `type: transformer` texts and `tokenizer: clip`"


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A stack of pre-LN Transformer blocks."""

    width: int
    layers: int
    heads: int
    hidden: int
    """Channels inside the feed-forward layers."""
    quick_gelu: bool
    """Else the exact GELU."""
    eps: float
    """Of every layer norm."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """Both towers and what they share."""

    embed_dim: int
    vision: TowerShape
    image_size: int
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    text: TowerShape
    context_length: int
    vocab_size: int


def read_shape(pretrained: Pretrained) -> ClipShape:
    """The sizes of a model that both libraries can hold.

    Raises:
        InputError: the model is of another kind; the message says what is exportable.
    """
    config, model = pretrained.config, pretrained.model
    if not re.match(r"vit_.*_clip_", config.image.name):
        raise InputError(f"model.image.name={config.image.name} cannot be exported; {EXPORTABLE}")
    if not isinstance(config.text, TransformerTextConfig) or not isinstance(pretrained.tokenizer, ClipTokenizer):
        named = f"model.text.type={config.text.type} with tokenizer={config.text.tokenizer}"
        raise InputError(f"{named} cannot be exported; {EXPORTABLE}")
    trunk = cast(Any, model.image_tower.trunk)
    text_tower = cast(TextTower, model.text_tower)
    return ClipShape(
        embed_dim=model.image_tower.projection.out_features,
        vision=_tower(trunk.blocks, heads=trunk.blocks[0].attn.num_heads, quick_gelu=_is_quick_gelu(trunk)),
        image_size=config.image.image_size,
        patch_size=trunk.patch_embed.proj.kernel_size[0],
        mean=config.image.mean,
        std=config.image.std,
        text=_tower(text_tower.blocks, heads=config.text.heads, quick_gelu=config.text.activation == "quick_gelu"),
        context_length=text_tower.context_length,
        vocab_size=text_tower.token_embedding.num_embeddings,
    )


def _tower(blocks: nn.Module, *, heads: int, quick_gelu: bool) -> TowerShape:
    stack = list(cast(Any, blocks))
    first = stack[0]
    return TowerShape(
        width=first.mlp.fc1.in_features,
        layers=len(stack),
        heads=heads,
        hidden=first.mlp.fc1.out_features,
        quick_gelu=quick_gelu,
        eps=first.norm1.eps,
    )


def _is_quick_gelu(trunk: Any) -> bool:
    activation = type(trunk.blocks[0].mlp.act).__name__
    if activation not in ("GELU", "QuickGELU"):
        raise InputError(f"the image tower's activation {activation} cannot be exported; use GELU or QuickGELU")
    return activation == "QuickGELU"
