"""The sizes of a trained model, read from its modules: those that transformers and open_clip both need."""

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from clipx.config.model import TransformerTextConfig
from clipx.data.tokenizer import ClipTokenizer
from clipx.errors import InputError
from clipx.models.text_tower import TextTower
from clipx.pretrained import Pretrained

EXPORTABLE = "exportable are ViTs of CLIP's shape (vit_*_clip_*) with `type: transformer` texts and `tokenizer: clip`"


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """The sizes of a stack of pre-LN Transformer blocks."""

    width: int
    layers: int
    heads: int
    hidden: int
    """Hidden channels of the feed-forward layers."""
    quick_gelu: bool
    """Whether the activation is QuickGELU; otherwise it is the exact GELU."""
    eps: float
    """The epsilon of every layer norm."""


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """The sizes of both towers, of the embedding space, and of the inputs."""

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
    """Reads the sizes of a model that both libraries support.

    Raises:
        InputError: the libraries do not support the model; the message says which models are exportable.
    """
    config, model = pretrained.config, pretrained.model
    trunk = cast(Any, model.image_tower.trunk)
    if missing := _missing_part(trunk):
        raise InputError(
            f"model.image.name={config.image.name} with options={config.image.options} cannot be exported, it has no "
            f"{missing}; {EXPORTABLE}"
        )
    if not isinstance(config.text, TransformerTextConfig) or not isinstance(pretrained.tokenizer, ClipTokenizer):
        named = f"model.text.type={config.text.type} with tokenizer={config.text.tokenizer}"
        raise InputError(f"{named} cannot be exported; {EXPORTABLE}")
    text_tower = cast(TextTower, model.text_tower)
    return ClipShape(
        embed_dim=config.embed_dim,
        vision=_tower(trunk.blocks, heads=trunk.blocks[0].attn.num_heads, quick_gelu=_is_quick_gelu(trunk)),
        image_size=config.image.image_size,
        patch_size=trunk.patch_embed.proj.kernel_size[0],
        mean=config.image.mean,
        std=config.image.std,
        text=_tower(text_tower.blocks, heads=config.text.heads, quick_gelu=config.text.activation == "quick_gelu"),
        context_length=text_tower.context_length,
        vocab_size=text_tower.token_embedding.num_embeddings,
    )


def _missing_part(trunk: Any) -> str | None:
    """The first part of both libraries' ViT that timm's `trunk` does not have, or None.

    Parts that only the trunk has (layer scale, norms of queries and keys) have weights, which `KeyMap` refuses.
    """
    if type(trunk).__name__ != "VisionTransformer":
        return "plain ViT"
    num_patches, attention = trunk.patch_embed.num_patches, trunk.blocks[0].attn
    has = {
        "class token as its only token besides the patches": trunk.cls_token is not None and trunk.reg_token is None,
        "position for every patch and the class token": trunk.pos_embed is not None
        and trunk.pos_embed.shape[1] == num_patches + 1,
        "LayerNorm before the blocks": isinstance(trunk.norm_pre, nn.LayerNorm),
        "LayerNorm after the blocks": isinstance(trunk.norm, nn.LayerNorm),
        "pooling at the class token": trunk.global_pool == "token",
        "plain blocks": all(type(block).__name__ == "Block" for block in trunk.blocks),
        "biases in attention": attention.qkv.bias is not None and attention.proj.bias is not None,
    }
    return next((name for name, present in has.items() if not present), None)


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
