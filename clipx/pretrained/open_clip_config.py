"""open_clip's description of a model, `open_clip_config.json`, as our config; needs no torch.

Every key is read, passed over because it changes nothing in evaluation, or refused by its name: a model that computes
something else than open_clip's is never built.
"""

import json
from pathlib import Path
from typing import Any

from clipx.config.model import (
    Activation,
    Cleaning,
    HuggingFaceTextConfig,
    ModelConfig,
    Projection,
    TextConfig,
    TimmImageConfig,
    TransformerTextConfig,
)
from clipx.errors import InputError
from clipx.pretrained.json_keys import Keys

CONFIG = "open_clip_config.json"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
TEXT_ENCODERS = {
    "bert": "cls_pooler",
    "roberta": "mean_pooler",
    "xlm-roberta": "mean_pooler",
    "mt5": "mean_pooler",
    "m2m_100": "cls_pooler",
}
"""Kinds of transformers' encoders that open_clip knows, with the pooling that it takes where none is named."""
_ENCODERS_WITH_POOLER = ("bert", "roberta", "xlm-roberta")
CLIP_VOCABULARY = 49_408
"""Ids of CLIP's tokenizer; the highest ends a text."""
_CUSTOM_ATTENTION = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
_OWN_VISION = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "ls_init_value", "no_ln_pre", "pos_embed_type"),
    *("final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs", "block_type", "attentional_pool"),
    *("attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
    *_CUSTOM_ATTENTION,
)
_TIMM_VISION = ("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path")
_OWN_TEXT = (
    *("vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "embed_cls", "pad_id", "eos_id"),
    *("no_causal_mask", "final_ln_after_pool", "pool_type", "proj_bias", "proj_type", "act_kwargs", "norm_kwargs"),
    *("block_type", "output_tokens"),
    *_CUSTOM_ATTENTION,
)
_TRANSFORMERS_TEXT = ("hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type")


def read_config(folder: Path) -> ModelConfig:
    """The config of an open_clip folder's model.

    Raises:
        InputError: the file cannot be read, or describes a model that clipx does not have; the key is named.
    """
    file = folder / CONFIG
    content = Keys(file, "", _content(file))
    model, preprocess = content.section("model_cfg", required=True), content.section("preprocess_cfg")
    embed_dim = model.whole("embed_dim", 0)
    quick_gelu = model.only("quick_gelu", False, True)
    bias = model.take("init_logit_bias")
    model.only("multimodal_cfg", None, why="CoCa writes texts too, which clipx does not")
    model.pass_over("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype")
    vision, text = model.section("vision_cfg", required=True), model.section("text_cfg", required=True)
    config = ModelConfig(
        embed_dim=embed_dim,
        image=_image(vision, _pictures(preprocess), embed_dim=embed_dim, quick_gelu=quick_gelu),
        text=_text(text, folder, quick_gelu=quick_gelu),
        init_logit_bias=bias,
    )
    for keys in (model, vision, text, preprocess):
        keys.end()
    return config


def sections(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The sections model_cfg, vision_cfg and text_cfg of a file that `read_config` can read."""
    model = _content(folder / CONFIG)["model_cfg"]
    return model, model["vision_cfg"], model["text_cfg"]


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} cannot be read ({reason}); take open_clip's file") from error


def _pictures(keys: Keys) -> dict[str, Any]:
    """What happens to a picture, as arguments of the image tower's config; null means open_clip's default."""
    keys.only("mode", "RGB")
    keys.pass_over("size", "fill_color")  # the tower's size counts, and nothing is filled
    resize = keys.only("resize_mode", "shortest", "squash", None, why="clipx resizes in no other way") or "shortest"
    interpolation = keys.only(
        "interpolation", "bicubic", "bilinear", "random", None, why="clipx resizes in no other way"
    )
    mean, std = keys.take("mean") or OPENAI_MEAN, keys.take("std") or OPENAI_STD
    return {
        "resize": resize,
        "interpolation": "bilinear" if interpolation == "bilinear" else "bicubic",
        "mean": mean if isinstance(mean, list | tuple) else (mean,) * 3,
        "std": std if isinstance(std, list | tuple) else (std,) * 3,
    }


def _image(keys: Keys, pictures: dict[str, Any], *, embed_dim: int, quick_gelu: bool) -> TimmImageConfig:
    keys.pass_over("patch_dropout")
    pictures["image_size"] = keys.side("image_size", 224)
    if name := keys.take("timm_model_name"):
        keys.pass_over(*_OWN_VISION)
        return _timm_image(keys, name, pictures, embed_dim=embed_dim)
    keys.pass_over(*_TIMM_VISION)
    return _own_vit(keys, pictures, quick_gelu=quick_gelu)


def _own_vit(keys: Keys, pictures: dict[str, Any], *, quick_gelu: bool) -> TimmImageConfig:
    """timm's ViT of CLIP's shape, which open_clip's own ViT is."""
    width, head_width = keys.whole("width", 768), keys.whole("head_width", 64)
    layers = keys.whole("layers", 12, of_list="clipx has no ResNet of OpenAI's; a ViT or a timm trunk can be read")
    options: dict[str, Any] = {
        "embed_dim": width,
        "depth": layers,
        "num_heads": max(width // head_width, 1),
        "patch_size": keys.side("patch_size", 16),
        "mlp_ratio": keys.number("mlp_ratio", 4.0),
    }
    if (scale := keys.take("ls_init_value")) is not None:
        options["init_values"] = scale
    norm_after_pool = keys.only("final_ln_after_pool", False, True)
    if keys.only("pool_type", "tok", "avg") == "avg":
        options |= {"global_pool": "avg", "fc_norm": norm_after_pool}
    activation = _activation(keys, quick_gelu=quick_gelu)
    if activation == "gelu_tanh":
        options["act_layer"] = activation
    for key in (*_CUSTOM_ATTENTION, "no_ln_pre", "attentional_pool", "output_tokens"):
        keys.only(key, False)
    keys.only("block_type", None, "default", "custom")  # one function, unless a key above is true
    keys.pass_over("pos_embed_type", "attn_pooler_queries", "attn_pooler_heads")  # where positions begin
    eps = _eps(keys)
    return TimmImageConfig(
        name=f"vit_base_patch16_clip_{'quickgelu_' if activation == 'quick_gelu' else ''}224",
        options=options,
        eps=None if eps == 1e-5 else eps,
        projection="linear",
        **pictures,
    )


def _timm_image(keys: Keys, name: str, pictures: dict[str, Any], *, embed_dim: int) -> TimmImageConfig:
    keys.pass_over("timm_model_pretrained", "timm_drop", "timm_drop_path")
    keys.only("timm_proj_bias", False, why="clipx's projections of images have no bias")
    pool = keys.take("timm_pool", "avg") or ""
    proj = keys.only("timm_proj", "linear", "mlp", "none", "", None)
    if pool in ("abs_attn", "rot_attn"):
        keys.refuse("timm_pool", pool, "clipx has no attention pooling of feature maps")
    projection: Projection = "none"
    options: dict[str, Any] = {}
    if proj in ("linear", "mlp"):
        projection = proj
        if pool:  # by a rule that depends on the trunk
            from clipx.models.open_clip_trunk import options_for

            options = options_for(name, pool=pool)
    elif not pool:
        keys.refuse("timm_pool", pool, "without a projection the trunk must pool")
    else:
        options = {"global_pool": pool}
        if proj != "none":  # the trunk's classifier is the projection
            options["num_classes"] = embed_dim
    return TimmImageConfig(name=name, options=options, projection=projection, **pictures)


def _text(keys: Keys, folder: Path, *, quick_gelu: bool) -> TextConfig:
    common = {"context_length": keys.whole("context_length", 77)} | _tokenizer(keys, folder)
    if name := keys.take("hf_model_name"):
        keys.pass_over(*_OWN_TEXT)
        return _transformers_text(keys, name, common, folder)
    keys.pass_over(*_TRANSFORMERS_TEXT)
    return _own_text(keys, common, quick_gelu=quick_gelu)


def _tokenizer(keys: Keys, folder: Path) -> dict[str, Any]:
    """Tokenizer and cleaning, as arguments of the text tower's config."""
    keys.only("tokenizer_mode", None, "")
    own = keys.section("tokenizer_kwargs")
    if name := keys.take("hf_tokenizer_name"):
        cleaning: Cleaning = own.only("clean", "whitespace", "lower", "canonicalize")
        own.only("strip_sep_token", False)
        own.only("language", None)
        # for a local folder open_clip takes the tokenizer from there, whatever the name
        has_files = any((folder / file).is_file() for file in ("tokenizer_config.json", "tokenizer.json"))
        found = {"tokenizer": str(folder) if has_files else name, "cleaning": cleaning}
    else:
        cleaning = own.only("clean", "lower", "whitespace", "canonicalize")
        own.only("reduction_mask", "", None, why="clipx cuts long texts at their end")
        own.only("additional_special_tokens", None, [])
        found = {"tokenizer": "clip", "cleaning": None if cleaning == "lower" else cleaning}
    own.end()
    return found


def _own_text(keys: Keys, common: dict[str, Any], *, quick_gelu: bool) -> TransformerTextConfig:
    causal = not keys.only("no_causal_mask", False, True)
    pool = keys.only("pool_type", "argmax", "last", "eos")
    end_id = keys.take("eos_id", 2)
    of_clip = common["tokenizer"] == "clip"
    if pool == "argmax" and not of_clip:
        keys.refuse("pool_type", pool, "of another tokenizer than CLIP's the highest id is not the end of the text")
    if pool == "eos":
        _check_end(keys, end_id, common)
    if pool != "last" and not causal:
        keys.refuse("no_causal_mask", True, f"with pool_type={pool} every token sees padding that clipx does not have")
    for key in (*_CUSTOM_ATTENTION, "embed_cls", "output_tokens"):
        keys.only(key, False)
    keys.only("ls_init_value", None)
    keys.only("block_type", None, "default", "custom")  # one function, unless a key above is true
    keys.pass_over("pad_id", "final_ln_after_pool")  # of towers with a class token; of no tower
    return TransformerTextConfig(
        width=keys.whole("width", 512),
        layers=keys.whole("layers", 12),
        heads=keys.whole("heads", 8),
        mlp_ratio=keys.number("mlp_ratio", 4.0),
        vocab_size=_vocab_size(keys, of_clip=of_clip),
        activation=_activation(keys, quick_gelu=quick_gelu),
        eps=_eps(keys),
        causal=causal,
        pool="last" if pool == "last" else "end",
        pad=common["context_length"] if pool == "last" else None,
        projection=keys.only("proj_type", "linear", "none"),
        bias=keys.only("proj_bias", False, True),
        **common,
    )


def _vocab_size(keys: Keys, *, of_clip: bool) -> int | None:
    size = keys.whole("vocab_size", CLIP_VOCABULARY)
    return None if of_clip and size == CLIP_VOCABULARY else size


def _check_end(keys: Keys, end_id: Any, common: dict[str, Any]) -> None:
    """Checks that texts end with the id at which open_clip pools them."""
    last = CLIP_VOCABULARY - 1
    if common["tokenizer"] != "clip":
        from clipx.data.tokenizer import HuggingFaceTokenizer

        tokens_T, _ = HuggingFaceTokenizer(common["tokenizer"], common["context_length"]).encode(["a"])
        last = int(tokens_T[-1])
    if end_id != last:
        keys.refuse("eos_id", end_id, f"the tokenizer ends every text with {last}")


def _transformers_text(keys: Keys, name: str, common: dict[str, Any], folder: Path) -> HuggingFaceTextConfig:
    keys.pass_over("hf_model_pretrained")
    if common["tokenizer"] == "clip":
        keys.refuse("hf_tokenizer_name", None, "a text encoder of transformers needs its own tokenizer")
    found = encoder_name(name, folder)
    projection = keys.only("hf_proj_type", "mlp", "linear", None)
    pooler = keys.only(
        "hf_pooler_type",
        "mean_pooler",
        "cls_last_hidden_state_pooler",
        "cls_pooler",
        None,
        why="clipx pools by no other",
    )
    if pooler in ("cls_pooler", None):
        from clipx.models.huggingface_text import kind_of_encoder

        kind = kind_of_encoder(found)
        pooler = pooler or TEXT_ENCODERS.get(kind, "mean_pooler")
        if pooler == "cls_pooler" and kind in _ENCODERS_WITH_POOLER:
            keys.refuse("hf_pooler_type", "cls_pooler", f"clipx does not have the layer that a {kind} pools with")
    return HuggingFaceTextConfig(
        name=found,
        pool="mean" if pooler == "mean_pooler" else "cls",
        projection=projection or "none",
        pretrained=False,  # the folder's own weights hold the encoder's
        **common,
    )


def encoder_name(name: str, folder: Path) -> str:
    """A text encoder's folder or hub name: of a folder that was moved, the one of the same name beside the config."""
    beside = folder / Path(name).name
    if not (Path(name) / "config.json").is_file() and (beside / "config.json").is_file():
        return str(beside)
    return name


def _activation(keys: Keys, *, quick_gelu: bool) -> Activation:
    arguments = keys.section("act_kwargs")
    if quick_gelu:
        arguments.end()
        return "quick_gelu"
    approximate = arguments.only("approximate", "none", "tanh")
    arguments.end()
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _eps(keys: Keys) -> float:
    arguments = keys.section("norm_kwargs")
    eps = arguments.number("eps", 1e-5)
    arguments.end()
    return eps
