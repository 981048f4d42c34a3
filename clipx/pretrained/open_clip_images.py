"""open_clip's image tower and what it does to a picture, as our config; needs no torch."""

from typing import Any

from clipx.config.model import CLIP_MEAN, CLIP_STD, Activation, Projection, TimmImageConfig
from clipx.pretrained.json_keys import Keys

CUSTOM_ATTENTION = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
"""Kinds of attention of both towers that clipx does not have."""
_OWN_VISION = (
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "ls_init_value", "no_ln_pre", "pos_embed_type"),
    *("final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs", "block_type", "attentional_pool"),
    *("attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
    *CUSTOM_ATTENTION,
)
_TIMM_VISION = ("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path")


def read_images(keys: Keys, preprocess: Keys, *, embed_dim: int, quick_gelu: bool) -> TimmImageConfig:
    """The config of the image tower.

    Args:
        keys: of `vision_cfg`.
        preprocess: the keys of `preprocess_cfg`.
        embed_dim: of the shared space.
        quick_gelu: whether open_clip's own ViT has this activation.

    Raises:
        InputError: a tower, or a way to prepare pictures, that clipx does not have; the key is named.
    """
    keys.pass_over("patch_dropout")
    pictures = _pictures(preprocess) | {"image_size": keys.side("image_size", 224)}
    if name := keys.take("timm_model_name"):
        keys.pass_over(*_OWN_VISION)
        return _timm_image(keys, name, pictures, embed_dim=embed_dim)
    keys.pass_over(*_TIMM_VISION)
    return _own_vit(keys, pictures, quick_gelu=quick_gelu)


def _pictures(keys: Keys) -> dict[str, Any]:
    """What happens to a picture, as arguments of the image tower's config; null means open_clip's default."""
    keys.only("mode", "RGB")
    keys.pass_over("size", "fill_color")  # the tower's size counts, and nothing is filled
    resize = keys.only("resize_mode", "shortest", "squash", None, why="clipx resizes in no other way") or "shortest"
    interpolation = keys.only(
        "interpolation", "bicubic", "bilinear", "random", None, why="clipx resizes in no other way"
    )
    mean, std = keys.take("mean") or CLIP_MEAN, keys.take("std") or CLIP_STD
    return {
        "resize": resize,
        "interpolation": "bilinear" if interpolation == "bilinear" else "bicubic",
        "mean": mean if isinstance(mean, list | tuple) else (mean,) * 3,
        "std": std if isinstance(std, list | tuple) else (std,) * 3,
    }


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
    activation = read_activation(keys, quick_gelu=quick_gelu)
    if activation == "gelu_tanh":
        options["act_layer"] = activation
    for key in (*CUSTOM_ATTENTION, "no_ln_pre", "attentional_pool", "output_tokens"):
        keys.only(key, False)
    keys.only("block_type", None, "default", "custom")  # one function, unless a key above is true
    keys.pass_over("pos_embed_type", "attn_pooler_queries", "attn_pooler_heads")  # where positions begin
    eps = read_eps(keys)
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


def read_activation(keys: Keys, *, quick_gelu: bool) -> Activation:
    """Of the blocks of a tower."""
    arguments = keys.section("act_kwargs")
    if quick_gelu:
        arguments.end()
        return "quick_gelu"
    approximate = arguments.only("approximate", "none", "tanh")
    arguments.end()
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def read_eps(keys: Keys) -> float:
    """Of the layer norms of a tower."""
    arguments = keys.section("norm_kwargs")
    eps = arguments.number("eps", 1e-5)
    arguments.end()
    return eps
