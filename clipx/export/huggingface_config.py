"""The config of transformers' `CLIPModel` or `SiglipModel` for a trained model, read from its modules."""

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from clipx.config.model import TransformerTextConfig
from clipx.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer
from clipx.errors import InputError
from clipx.export.options import Tower
from clipx.models.text_tower import TextTower
from clipx.pretrained import Pretrained
from clipx.pretrained.huggingface_config import LOGIT_BIAS
from clipx.pretrained.timm_names import Family

_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_pytorch_tanh"}  # timm's classes
_TEXT_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_KNOWN = "it has ViTs of CLIP's shape (vit_*_clip_*) with causal texts, of SigLIP's (vit_*_siglip_*) with padded ones"
PAD = ("<|pad|>", ClipTokenizer.vocab_size)
"""What pads in a SigLIP with CLIP's tokenizer, and its id. Here that is id 0, but transformers would read `!` as it."""


def family_of(pretrained: Pretrained, only: Tower | None = None) -> Family:
    """Which of transformers' two models a model is, or with `only` of which one its tower is a part.

    Raises:
        InputError: neither; the message says what differs from the nearer one.
    """
    trunk = cast(Any, pretrained.model.image_tower.trunk)
    pools_texts_last = getattr(pretrained.config.text, "causal", True) is False
    is_siglip = pools_texts_last if only == "text" else getattr(trunk, "global_pool", None) == "map"
    family: Family = "siglip" if is_siglip else "clip"
    name = "SiglipModel" if is_siglip else "CLIPModel"
    if only != "text" and (missing := _missing_in_image(pretrained, family)):
        image = pretrained.config.image.name
        raise InputError(f"transformers' {name} has no place for model.image.name={image}: {missing}; {_KNOWN}")
    if only != "image" and (missing := _missing_in_text(pretrained, family)):
        raise InputError(f"transformers' {name} has no place for this model.text: {missing}; {_KNOWN}")
    return family


def config_of(pretrained: Pretrained, family: Family, only: Tower | None = None) -> Any:
    """transformers' config of a model of the family, or of its one tower."""
    import transformers as library

    embed_dim, bias = pretrained.config.embed_dim, pretrained.model.logit_bias
    match family, only:
        case "clip", None:
            towers = {"text_config": _text(pretrained, family), "vision_config": _vision(pretrained, family)}
            stored = {} if bias is None else {LOGIT_BIAS: bias.item()}
            return library.CLIPConfig(**towers, projection_dim=embed_dim, architectures=["CLIPModel"], **stored)
        case "clip", "image":
            name = "CLIPVisionModelWithProjection"
            return library.CLIPVisionConfig(**_vision(pretrained, family), architectures=[name])
        case "clip", _:
            return library.CLIPTextConfig(**_text(pretrained, family), architectures=["CLIPTextModelWithProjection"])
        case _, None:
            towers = {"text_config": _text(pretrained, family), "vision_config": _vision(pretrained, family)}
            return library.SiglipConfig(**towers, architectures=["SiglipModel"])
        case _, "image":
            return library.SiglipVisionConfig(**_vision(pretrained, family), architectures=["SiglipVisionModel"])
        case _:
            return library.SiglipTextConfig(**_text(pretrained, family), architectures=["SiglipTextModel"])


def _vision(pretrained: Pretrained, family: Family) -> dict[str, Any]:
    trunk = cast(Any, pretrained.model.image_tower.trunk)
    projection = {"projection_dim": pretrained.config.embed_dim} if family == "clip" else {}
    return _tower(trunk.blocks, heads=trunk.blocks[0].attn.num_heads) | {
        "hidden_act": _ACTIVATIONS[type(trunk.blocks[0].mlp.act).__name__],
        "image_size": pretrained.config.image.image_size,
        "patch_size": trunk.patch_embed.proj.kernel_size[0],
        **projection,
    }


def _text(pretrained: Pretrained, family: Family) -> dict[str, Any]:
    tower, config = cast(TextTower, pretrained.model.text_tower), _text_config(pretrained)
    num_ids, embed_dim = tower.token_embedding.num_embeddings, pretrained.config.embed_dim
    if family == "siglip" and isinstance(pretrained.tokenizer, ClipTokenizer):
        num_ids += 1  # what pads
    return _tower(tower.blocks, heads=config.heads) | {
        "hidden_act": _TEXT_ACTIVATIONS[config.activation],
        "max_position_embeddings": tower.context_length,
        "vocab_size": num_ids,
        "projection_dim" if family == "clip" else "projection_size": embed_dim,
        **_special_tokens(pretrained, family),
    }


def _special_tokens(pretrained: Pretrained, family: Family) -> dict[str, int | None]:
    tokenizer = pretrained.tokenizer
    if isinstance(tokenizer, ClipTokenizer):
        pad = PAD[1] if family == "siglip" else tokenizer.end_id
        # the default of old configs, an end of 2, selects another pooling
        return {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id, "pad_token_id": pad}
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return {"bos_token_id": None, "eos_token_id": tokenizer.end_id, "pad_token_id": tokenizer.pad_id}


def _missing_in_image(pretrained: Pretrained, family: Family) -> str | None:
    """The first thing that transformers' image tower has and a model's has not, or the other way round."""
    trunk, projection = cast(Any, pretrained.model.image_tower.trunk), pretrained.model.image_tower.projection
    if type(trunk).__name__ != "VisionTransformer":
        return "it is no plain ViT"
    attention, patches = trunk.blocks[0].attn, trunk.patch_embed
    norms, activation = _epsilons(trunk), type(trunk.blocks[0].mlp.act).__name__
    prefix = 1 if family == "clip" else 0
    same: dict[str, Callable[[], bool]] = {
        f"{prefix} tokens besides the patches": lambda: trunk.num_prefix_tokens == prefix and trunk.reg_token is None,
        "a position for every token": lambda: (
            trunk.pos_embed is not None and trunk.pos_embed.shape[1] == patches.num_patches + prefix
        ),
        f"{'a' if prefix else 'no'} LayerNorm before the blocks": lambda: isinstance(
            trunk.norm_pre, nn.LayerNorm if prefix else nn.Identity
        ),
        "a LayerNorm after the blocks": lambda: isinstance(trunk.norm, nn.LayerNorm),
        "nothing between pooling and projection": lambda: isinstance(trunk.fc_norm, nn.Identity),
        "pooling at the class token" if prefix else "pooling by attention": lambda: _pools(trunk, family),
        "plain blocks": lambda: all(type(block).__name__ == "Block" for block in trunk.blocks),
        "biases in attention": lambda: attention.qkv.bias is not None and attention.proj.bias is not None,
        "a bias of the patches" if family == "siglip" else "no bias of the patches": lambda: (
            (patches.proj.bias is not None) == (family == "siglip")
        ),
        "square patches": lambda: len(set(patches.proj.kernel_size)) == 1,
        "one epsilon of all norms": lambda: len(norms) == 1,
        f"an activation among {', '.join(_ACTIVATIONS)}": lambda: activation in _ACTIVATIONS,
        "a linear projection" if prefix else "no projection": lambda: isinstance(
            projection, nn.Linear if prefix else nn.Identity
        ),
    }
    return next((f"it must have {name}" for name, holds in same.items() if not holds()), None)


def _pools(trunk: Any, family: Family) -> bool:
    if family == "clip":
        return bool(trunk.global_pool == "token")
    pool, block = trunk.attn_pool, trunk.blocks[0]
    sizes = pool.num_heads == block.attn.num_heads and pool.mlp.fc1.out_features == block.mlp.fc1.out_features
    plain = pool.latent_len == 1 and pool.pos_embed is None and isinstance(pool.q_norm, nn.Identity)
    return sizes and plain and pool.pool == "token" and type(pool.mlp.act) is type(block.mlp.act)


def _missing_in_text(pretrained: Pretrained, family: Family) -> str | None:
    config = pretrained.config.text
    if not isinstance(config, TransformerTextConfig):
        return "it must be of `type: transformer`"
    projection = cast(TextTower, pretrained.model.text_tower).projection
    clip = family == "clip"
    same = {
        f"causal={str(clip).lower()}": config.causal == clip,
        "pool=end" if clip else "pool=last with pad": (config.pool == "end") == clip,
        "a linear projection": isinstance(projection, nn.Linear),
        f"bias={str(not clip).lower()}": config.bias != clip,
        "a tokenizer that ends every text with one token and has one to pad": _has_tokens(pretrained),
    }
    return next((f"it must have {name}" for name, holds in same.items() if not holds), None)


def _has_tokens(pretrained: Pretrained) -> bool:
    tokenizer = pretrained.tokenizer
    if isinstance(tokenizer, ClipTokenizer):
        return True
    if not isinstance(tokenizer, HuggingFaceTokenizer) or tokenizer.pad_id is None:
        return False
    config = _text_config(pretrained)
    if config.pool == "last":
        return True
    tokens_T, lengths_B = tokenizer.encode(["a", "b c"])
    return all(int(row[-1]) == tokenizer.end_id for row in tokens_T.split(lengths_B.tolist()))


def _text_config(pretrained: Pretrained) -> TransformerTextConfig:
    return cast(TransformerTextConfig, pretrained.config.text)


def _tower(blocks: nn.Module, *, heads: int) -> dict[str, Any]:
    stack = list(cast(Any, blocks))
    return {
        "hidden_size": stack[0].mlp.fc1.in_features,
        "num_hidden_layers": len(stack),
        "num_attention_heads": heads,
        "intermediate_size": stack[0].mlp.fc1.out_features,
        "layer_norm_eps": stack[0].norm1.eps,
    }


def _epsilons(trunk: nn.Module) -> set[float]:
    return {module.eps for module in trunk.modules() if isinstance(module, nn.LayerNorm)}
