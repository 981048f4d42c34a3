"""open_clip's description of a model, `open_clip_config.json`, as our config; needs no torch.

Every key is read, passed over because it changes nothing in evaluation, or refused by its name: a model that computes
something else than open_clip's is never built.
"""

from pathlib import Path
from typing import Any

from clipx.config.model import (
    CLIP_VOCABULARY,
    SIGMOID_MAX_LOGIT_SCALE,
    Cleaning,
    HuggingFaceTextConfig,
    ModelConfig,
    TextConfig,
    TransformerTextConfig,
)
from clipx.pretrained.json_file import read_json
from clipx.pretrained.json_keys import Keys
from clipx.pretrained.open_clip_images import CUSTOM_ATTENTION, read_activation, read_eps, read_images

CONFIG = "open_clip_config.json"
TEXT_ENCODERS = {
    "bert": "cls_pooler",
    "roberta": "mean_pooler",
    "xlm-roberta": "mean_pooler",
    "mt5": "mean_pooler",
    "m2m_100": "cls_pooler",
}
"""Kinds of transformers' encoders that open_clip knows, with the pooling that it takes where none is named."""
_ENCODERS_WITH_POOLER = ("bert", "roberta", "xlm-roberta")
_OWN_TEXT = (
    *("vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "embed_cls", "pad_id", "eos_id"),
    *("no_causal_mask", "final_ln_after_pool", "pool_type", "proj_bias", "proj_type", "act_kwargs", "norm_kwargs"),
    *("block_type", "output_tokens"),
    *CUSTOM_ATTENTION,
)
_TRANSFORMERS_TEXT = ("hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type")


def read_config(folder: Path) -> ModelConfig:
    """The config of an open_clip folder's model.

    Raises:
        InputError: the file cannot be read, or describes a model that clipx does not have; the key is named.
    """
    file = folder / CONFIG
    content = Keys(file, "", read_json(file))
    model, preprocess = content.section("model_cfg", required=True), content.section("preprocess_cfg")
    embed_dim = model.whole("embed_dim", 0)
    quick_gelu = model.only("quick_gelu", False, True)
    bias = model.take("init_logit_bias")
    model.only("multimodal_cfg", None, why="CoCa writes texts too, which clipx does not")
    model.pass_over("custom_text", "init_logit_scale", "nonscalar_logit_scale", "output_dict", "cast_dtype")
    vision, text = model.section("vision_cfg", required=True), model.section("text_cfg", required=True)
    config = ModelConfig(
        embed_dim=embed_dim,
        image=read_images(vision, preprocess, embed_dim=embed_dim, quick_gelu=quick_gelu),
        text=_text(text, folder, quick_gelu=quick_gelu),
        init_logit_bias=bias,
        max_logit_scale=SIGMOID_MAX_LOGIT_SCALE if bias is not None else 100.0,
    )
    for keys in (model, vision, text, preprocess):
        keys.end()
    return config


def sections(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The sections model_cfg, vision_cfg and text_cfg of a file that `read_config` can read."""
    model = read_json(folder / CONFIG)["model_cfg"]
    return model, model["vision_cfg"], model["text_cfg"]


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
    for key in (*CUSTOM_ATTENTION, "embed_cls", "output_tokens"):
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
        activation=read_activation(keys, quick_gelu=quick_gelu),
        eps=read_eps(keys),
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
