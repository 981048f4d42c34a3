"""transformers' description of a CLIP or a SigLIP, `config.json`, as our config; needs no torch.

Every key is read, passed over because it changes nothing in evaluation, or refused by its name.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipx.config.model import (
    CLIP_VOCABULARY,
    SIGMOID_MAX_LOGIT_SCALE,
    Activation,
    ModelConfig,
    TimmImageConfig,
    TransformerTextConfig,
)
from clipx.errors import InputError
from clipx.pretrained.huggingface_images import read_preprocessing
from clipx.pretrained.json_file import read_json
from clipx.pretrained.json_keys import Keys
from clipx.pretrained.timm_names import NORM_EPS, Family, Vit, ratio, timm_vit

CONFIG = "config.json"
LOGIT_BIAS = "logit_bias"
"""The key of a CLIP's config.json that keeps the bias of a model trained with the sigmoid loss: its class has none."""
_ACTIVATIONS: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_TOWERS = ("vision_config", "text_config")
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# what transformers' classes take where a config says nothing
_DEFAULTS: dict[Family, dict[str, dict[str, Any]]] = {
    "clip": {
        "vision_config": _VISION | {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        "text_config": {
            "vocab_size": CLIP_VOCABULARY,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
    },
    "siglip": {
        "vision_config": _VISION | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        "text_config": _VISION
        | {
            "vocab_size": 32000,
            "max_position_embeddings": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
        },
    },
}
# Keys that change nothing of what the model computes: how it was made and initialised, dropout, how results are
# returned, settings of text generation that older versions wrote into every config, and ids of which none is used
_HARMLESS = (
    *("_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "model_type"),
    *("dtype", "torch_dtype", "transformers_version", "transformers.js_config", "tokenizer_class"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range", "logit_scale_init_value"),
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "projection_dim"),
    *("chunk_size_feed_forward", "return_dict", "tie_word_embeddings", "use_cache"),
    *("finetuning_task", "id2label", "label2id", "problem_type", "task_specific_params"),
    *("diversity_penalty", "length_penalty", "max_length", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("repetition_penalty", "temperature", "top_k", "top_p", "typical_p"),
)
_EMPTY: tuple[Any, ...] = (None, False, 0, "", [], {})  # a key with one of these asks for nothing


def read_config(folder: Path) -> ModelConfig:
    """The config of a folder with transformers' `CLIPModel` or `SiglipModel`; needs no torch.

    Its tokenizer is the folder: transformers does not clean texts as open_clip does.

    Raises:
        InputError: another model, or one of a kind or with a key that clipx does not have; the key is named.
    """
    content = read_json(folder / CONFIG)
    family = family_of(content, folder)
    vision, text = (tower(content, folder, key, family) for key in _TOWERS)
    image = _image(vision, family)
    image = replace(image, **read_preprocessing(folder, family=family, image_size=image.image_size))
    words = replace(_text(text, family), tokenizer=str(folder))
    whole = _keys(folder, "", content)
    whole.pass_over(*_TOWERS, *_HARMLESS)
    if family == "clip":
        whole.pass_over(*(f"{key}_dict" for key in _TOWERS))
        config = ModelConfig(embed_dim=_projection_dim(content, folder), image=image, text=words)
        if (bias := whole.take(LOGIT_BIAS)) is not None:
            config = replace(config, init_logit_bias=bias)
    else:
        if (width := text.whole("projection_size", words.width)) != _width(content):
            text.refuse(
                "projection_size", width, f"images have {_width(content)} channels, and texts must have as many"
            )
        config = _siglip(image, words, embed_dim=width)
    for keys in (whole, vision, text):
        keys.pass_over(*_HARMLESS)
        keys.end()
    return config


def family_of(content: Mapping[str, Any], folder: Path) -> Family:
    """Which of the two kinds of models a config describes.

    Raises:
        InputError: neither.
    """
    match kind := content.get("model_type"):
        case "clip" | "siglip":
            return kind
        case "siglip2":
            raise InputError(
                f"{folder / CONFIG}: model_type=siglip2 takes pictures of free resolution (NaFlex), which clipx does "
                "not have; SigLIP 2 of fixed resolution has model_type=siglip"
            )
        case _:
            raise InputError(
                f"{folder / CONFIG}: model_type={kind or 'none'} is no model of pictures and texts that clipx knows; "
                "known are clip and siglip"
            )


def _keys(folder: Path, name: str, values: Any) -> Keys:
    """The keys that ask for something."""
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if value not in _EMPTY or key == "vision_use_head"}
    return Keys(folder / CONFIG, name, values)


def tower(content: Mapping[str, Any], folder: Path, key: str, family: Family) -> Keys:
    """The config of a tower; in old files of CLIP the one under KEY_dict counts instead."""
    old = content.get(f"{key}_dict") if family == "clip" else None
    name = key if old is None else f"{key}_dict"
    return _keys(folder, name, content.get(name) or {})


def _image(keys: Keys, family: Family) -> TimmImageConfig:
    defaults = _DEFAULTS[family]["vision_config"]
    keys.only("num_channels", 3, why="clipx's pictures are RGB")
    if family == "siglip":
        keys.only("vision_use_head", True, why="without its head it has no embeddings")
    image_size, sizes = keys.side("image_size", 224), _sizes(keys, defaults)
    vit = Vit(
        patch=keys.side("patch_size", defaults["patch_size"]),
        width=sizes["width"],
        depth=sizes["layers"],
        heads=sizes["heads"],
        hidden=sizes["hidden"],
        activation=_activation(keys, defaults["hidden_act"]),
    )
    name, options = timm_vit(family, vit, image_size=image_size)
    eps = keys.number("layer_norm_eps", defaults["layer_norm_eps"])
    return TimmImageConfig(
        name=name, image_size=image_size, options=options, eps=None if eps == NORM_EPS[family] else eps
    )


def _text(keys: Keys, family: Family) -> TransformerTextConfig:
    defaults = _DEFAULTS[family]["text_config"]
    sizes = _sizes(keys, defaults)
    length = keys.whole("max_position_embeddings", defaults["max_position_embeddings"])
    config = TransformerTextConfig(
        width=sizes["width"],
        layers=sizes["layers"],
        heads=sizes["heads"],
        context_length=length,
        mlp_ratio=ratio(sizes["hidden"], sizes["width"]),
        activation=_activation(keys, defaults["hidden_act"]),
        eps=keys.number("layer_norm_eps", defaults["layer_norm_eps"]),
        vocab_size=keys.whole("vocab_size", defaults["vocab_size"]),
    )
    return config if family == "clip" else replace(config, causal=False, pool="last", pad=length, bias=True)


def _sizes(keys: Keys, defaults: Mapping[str, Any]) -> dict[str, int]:
    names = {
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
    }
    sizes = {name: keys.whole(theirs, defaults[theirs]) for name, theirs in names.items()}
    if sizes["width"] % sizes["heads"]:
        keys.refuse("num_attention_heads", sizes["heads"], f"it does not divide hidden_size={sizes['width']}")
    return sizes


def _activation(keys: Keys, default: str) -> Activation:
    return _ACTIVATIONS[keys.only("hidden_act", default, *_ACTIVATIONS, why="clipx does not have this activation")]


def _projection_dim(content: Mapping[str, Any], folder: Path) -> int:
    """Of the shared space; some old files say it in the towers alone."""
    towers: set[Any] = {(content.get(key) or {}).get("projection_dim") for key in _TOWERS} - {None}
    return _keys(folder, "", content).whole("projection_dim", towers.pop() if len(towers) == 1 else 512)


def _width(content: Mapping[str, Any]) -> int:
    """Channels of the image tower."""
    return int((content.get("vision_config") or {}).get("hidden_size") or _VISION["hidden_size"])


def _siglip(image: TimmImageConfig, text: TransformerTextConfig, *, embed_dim: int) -> ModelConfig:
    """A SigLIP, whose images have no projection."""
    return ModelConfig(
        embed_dim=embed_dim,
        image=replace(image, projection="none"),
        text=text,
        init_logit_scale=10.0,  # arXiv 2303.15343, section 3.2, also the bias
        max_logit_scale=SIGMOID_MAX_LOGIT_SCALE,
        init_logit_bias=-10.0,
    )
