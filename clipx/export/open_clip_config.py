"""The description of a model in open_clip's words, or what it is that open_clip has no words for."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from clipx.config.model import HuggingFaceTextConfig, TimmImageConfig, TransformerTextConfig
from clipx.data.tokenizer import ClipTokenizer, HuggingFaceTokenizer
from clipx.errors import InputError
from clipx.models.huggingface_text import HuggingFaceTextTower
from clipx.models.key_maps.open_clip import Towers, key_map
from clipx.models.open_clip_trunk import pooling_of
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import VisionTower
from clipx.pretrained import Pretrained
from clipx.pretrained.open_clip_config import TEXT_ENCODERS

_ACTIVATIONS = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh"}
_POOLERS = {"mean": "mean_pooler", "cls": "cls_last_hidden_state_pooler"}

Section = dict[str, Any]


def describe(pretrained: Pretrained, *, text_encoder: str) -> tuple[Section, Towers]:
    """The content of open_clip_config.json, and the classes of the towers.

    Args:
        pretrained: the model.
        text_encoder: where open_clip will find the config of a transformers text.

    Raises:
        InputError: open_clip cannot build the model; the message says what it lacks, for the end of a line.
    """
    config, model = pretrained.config, pretrained.model
    text, text_towers = _text(pretrained, text_encoder)
    quick_text = isinstance(config.text, TransformerTextConfig) and config.text.activation == "quick_gelu"
    own_text = isinstance(config.text, TransformerTextConfig)
    vision, quick_gelu = _image(model.image_tower, config.image, quick_text=quick_text if own_text else None)
    towers = Towers(
        timm_image="timm_model_name" in vision,
        norm_after_pool=bool(vision.get("final_ln_after_pool")),
        custom_text="timm_model_name" in vision or not own_text,
        **text_towers,
    )
    _check_weights(pretrained, towers)
    model_cfg: Section = {"embed_dim": config.embed_dim, "quick_gelu": quick_gelu}
    if towers.custom_text:
        model_cfg["custom_text"] = True
    if model.logit_bias is not None:  # open_clip builds the parameter only if the config has this key
        model_cfg["init_logit_bias"] = model.logit_bias.item()
    preprocess_cfg = {
        "mean": list(config.image.mean),
        "std": list(config.image.std),
        "interpolation": config.image.interpolation,
        "resize_mode": config.image.resize,
    }
    return {"model_cfg": model_cfg | {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocess_cfg}, towers


def _check_weights(pretrained: Pretrained, towers: Towers) -> None:
    """Checks, without copying weights, that each has a name in open_clip."""
    weights = pretrained.model.state_dict().items()
    key_map(towers).to_theirs({name: torch.empty_like(tensor, device="meta") for name, tensor in weights})


def _image(tower: VisionTower, config: TimmImageConfig, *, quick_text: bool | None) -> tuple[Section, bool]:
    """vision_cfg and quick_gelu, which is of open_clip's own towers alone; `quick_text` None: the text has no such."""
    missing = missing_part(tower)
    if missing is None:
        section, quick = _own_vit(tower, config)
        if quick_text in (None, quick):
            return section, quick
        missing = "its activation is not that of its texts, and open_clip has one activation for both towers"
    if (pooling := pooling_of(tower, config)) is not None:
        section = {
            "timm_model_name": config.name,
            "timm_model_pretrained": False,
            "timm_pool": pooling.pool,
            "timm_proj": pooling.proj,
            "image_size": config.image_size,
        }
        return section, bool(quick_text)
    raise InputError(
        f"its image tower is not open_clip's own ViT ({missing}), and is not what timm builds from "
        f"model.image.name={config.name} alone, at its own size and without options"
    )


def missing_part(tower: VisionTower) -> str | None:
    """Which part of open_clip's own ViT a tower does not have, the first of several; None: it has all."""
    trunk = cast(Any, tower.trunk)
    if type(trunk).__name__ != "VisionTransformer":
        return "it is no plain ViT"
    num_patches, attention = trunk.patch_embed.num_patches, trunk.blocks[0].attn
    norms = [module for module in trunk.modules() if isinstance(module, nn.LayerNorm)]
    last = trunk.fc_norm if trunk.global_pool == "avg" and isinstance(trunk.norm, nn.Identity) else trunk.norm
    has = {
        "class token as its only token besides the patches": trunk.cls_token is not None and trunk.reg_token is None,
        "position for every patch and the class token": trunk.pos_embed is not None
        and trunk.pos_embed.shape[1] == num_patches + 1,
        "LayerNorm before the blocks": isinstance(trunk.norm_pre, nn.LayerNorm),
        "LayerNorm after the blocks": isinstance(last, nn.LayerNorm),
        "pooling at the class token or over the patches": trunk.global_pool in ("token", "avg"),
        "plain blocks": all(type(block).__name__ == "Block" for block in trunk.blocks),
        "bias-free patches": trunk.patch_embed.proj.bias is None,
        "biases in attention": attention.qkv.bias is not None and attention.proj.bias is not None,
        "plain attention": isinstance(attention.q_norm, nn.Identity) and isinstance(attention.norm, nn.Identity),
        "one epsilon": len({norm.eps for norm in norms}) == 1,
        "GELU, its approximation by tanh, or QuickGELU": type(trunk.blocks[0].mlp.act).__name__ in _ACTIVATIONS,
        "linear projection": type(tower.projection) is nn.Linear,
    }
    return next((f"it has no {name}" for name, present in has.items() if not present), None)


def _own_vit(tower: VisionTower, config: TimmImageConfig) -> tuple[Section, bool]:
    trunk = cast(Any, tower.trunk)
    block = trunk.blocks[0]
    width = block.mlp.fc1.in_features
    section: Section = {
        "width": width,
        "layers": len(trunk.blocks),
        "mlp_ratio": _ratio(width, block.mlp.fc1.out_features),
        "norm_kwargs": {"eps": block.norm1.eps},
        "head_width": width // block.attn.num_heads,
        "image_size": config.image_size,
        "patch_size": trunk.patch_embed.proj.kernel_size[0],
    }
    if hasattr(block.ls1, "gamma"):
        section["ls_init_value"] = float(config.options.get("init_values", 1.0))
    if trunk.global_pool == "avg":
        section |= {"pool_type": "avg", "final_ln_after_pool": isinstance(trunk.norm, nn.Identity)}
    activation = _ACTIVATIONS[type(block.mlp.act).__name__]
    return section | _act_kwargs(activation), activation == "quick_gelu"


def _text(pretrained: Pretrained, text_encoder: str) -> tuple[Section, dict[str, bool]]:
    match pretrained.config.text:
        case TransformerTextConfig() as config:
            return _own_text(pretrained, config), {"text_bias": config.bias}
        case HuggingFaceTextConfig() as config:
            section = _transformers_text(pretrained, config) | {"hf_model_name": text_encoder}
            return section, {"transformers_text": True}


def _own_text(pretrained: Pretrained, config: TransformerTextConfig) -> Section:
    tower = cast(TextTower, pretrained.model.text_tower)
    hidden = cast(Any, tower.blocks[0]).mlp.fc1.out_features
    projection = config.projection or pretrained.config.projection
    if projection == "mlp":
        raise InputError("open_clip's own text tower has no projection of two layers (model.text.projection=mlp)")
    if not config.causal and config.pool == "end":
        raise InputError(
            "open_clip's texts always see their padding unless causal; model.text.causal=false needs a pad"
        )
    section: Section = {
        "width": config.width,
        "layers": config.layers,
        "heads": config.heads,
        "mlp_ratio": _ratio(config.width, hidden),
        "norm_kwargs": {"eps": config.eps},
        "context_length": tower.context_length,
        "vocab_size": tower.token_embedding.num_embeddings,
    }
    section |= _act_kwargs(config.activation) | _tokenizer(pretrained, config.tokenizer)
    if not config.causal:
        section["no_causal_mask"] = True
    if projection == "none":
        section["proj_type"] = "none"
    elif config.bias:
        section["proj_bias"] = True
    if config.pool == "last":
        section["pool_type"] = "last"
    elif not isinstance(pretrained.tokenizer, ClipTokenizer):
        section |= {"pool_type": "eos", "eos_id": _end_id(pretrained)}
    return section


def _transformers_text(pretrained: Pretrained, config: HuggingFaceTextConfig) -> Section:
    encoder = cast(Any, cast(HuggingFaceTextTower, pretrained.model.text_tower).encoder)
    kind = encoder.config.model_type
    if kind not in TEXT_ENCODERS:
        raise InputError(f"open_clip has no {kind} for texts (model.text.name), only {', '.join(TEXT_ENCODERS)}")
    if config.pool not in _POOLERS:
        raise InputError(f"open_clip does not pool a transformers text by model.text.pool={config.pool}")
    if config.bias:
        raise InputError("open_clip's projection of a transformers text has no bias (model.text.bias=true)")
    pad = cast(HuggingFaceTokenizer, pretrained.tokenizer).pad_id
    if pad != encoder.config.pad_token_id:
        raise InputError(
            f"open_clip knows padding by the encoder's pad_token_id={encoder.config.pad_token_id}, and the tokenizer "
            f"pads with {pad}"
        )
    projection = config.projection or pretrained.config.projection
    return {
        "context_length": config.context_length,
        "hf_model_pretrained": False,
        "hf_proj_type": None if projection == "none" else projection,
        "hf_pooler_type": _POOLERS[config.pool],
    } | _tokenizer(pretrained, config.tokenizer or config.name)


def _tokenizer(pretrained: Pretrained, name: str) -> Section:
    """The keys of the tokenizer; from a folder open_clip takes the one in it, whatever the name, if there is any."""
    cleaning = pretrained.config.text.cleaning
    if isinstance(pretrained.tokenizer, ClipTokenizer):
        return {} if cleaning in (None, "lower") else {"tokenizer_kwargs": {"clean": cleaning}}
    if cast(HuggingFaceTokenizer, pretrained.tokenizer).pad_id is None:
        raise InputError(f"open_clip pads every text, and the tokenizer {name} has no token to pad with")
    return {
        "hf_tokenizer_name": "." if Path(name).is_dir() else name,
        "tokenizer_kwargs": {"clean": cleaning or "whitespace"},
    }


def _end_id(pretrained: Pretrained) -> int:
    """The id with which every text ends, and at which open_clip pools."""
    tokens_T, lengths_B = pretrained.tokenizer.encode(["a", "b c, d"])
    rows = [row.tolist() for row in tokens_T.split(lengths_B.tolist())]
    if rows[0][-1] != rows[1][-1] or any(rows[0][-1] in row[:-1] for row in rows):
        raise InputError(
            f"open_clip pools texts at an end token, and the tokenizer {pretrained.config.text.tokenizer} has none"
        )
    return int(rows[0][-1])


def _ratio(width: int, hidden: int) -> float:
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width  # open_clip rounds the product down


def _act_kwargs(activation: str) -> Section:
    return {"act_kwargs": {"approximate": "tanh"}} if activation == "gelu_tanh" else {}
