"""timm's name of a ViT of given sizes: the models of CLIP and SigLIP as people know them; imports no timm."""

from typing import Any, Literal, NamedTuple

from clipx.config.model import Activation

Family = Literal["clip", "siglip"]
NORM_EPS: dict[Family, float] = {"clip": 1e-5, "siglip": 1e-6}
"""Of the layer norms of timm's models of a family."""


class Vit(NamedTuple):
    """The sizes of a ViT."""

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    """Hidden channels of the feed-forward layers."""
    activation: Activation


_CLIP: dict[str, Vit] = {
    "vit_base_patch32_clip_{}": Vit(32, 768, 12, 12, 3072, "gelu"),
    "vit_base_patch16_clip_{}": Vit(16, 768, 12, 12, 3072, "gelu"),
    "vit_base_patch16_plus_clip_{}": Vit(16, 896, 12, 14, 3584, "gelu"),
    "vit_large_patch14_clip_{}": Vit(14, 1024, 24, 16, 4096, "gelu"),
    "vit_huge_patch14_clip_{}": Vit(14, 1280, 32, 16, 5120, "gelu"),
    "vit_giant_patch14_clip_{}": Vit(14, 1408, 40, 16, 6144, "gelu"),
    "vit_gigantic_patch14_clip_{}": Vit(14, 1664, 48, 16, 8192, "gelu"),
    "vit_base_patch32_clip_quickgelu_{}": Vit(32, 768, 12, 12, 3072, "quick_gelu"),
    "vit_base_patch16_clip_quickgelu_{}": Vit(16, 768, 12, 12, 3072, "quick_gelu"),
    "vit_large_patch14_clip_quickgelu_{}": Vit(14, 1024, 24, 16, 4096, "quick_gelu"),
    "vit_huge_patch14_clip_quickgelu_{}": Vit(14, 1280, 32, 16, 5120, "quick_gelu"),
}
# timm gives some of these the exact GELU under the same name: `timm_vit` states what a model has
_SIGLIP: dict[str, Vit] = {
    "vit_base_patch32_siglip_{}": Vit(32, 768, 12, 12, 3072, "gelu_tanh"),
    "vit_base_patch16_siglip_{}": Vit(16, 768, 12, 12, 3072, "gelu"),
    "vit_large_patch16_siglip_{}": Vit(16, 1024, 24, 16, 4096, "gelu"),
    "vit_so400m_patch14_siglip_{}": Vit(14, 1152, 27, 16, 4304, "gelu"),
    "vit_so400m_patch16_siglip_{}": Vit(16, 1152, 27, 16, 4304, "gelu_tanh"),
    "vit_giantopt_patch16_siglip_{}": Vit(16, 1536, 40, 16, 6144, "gelu_tanh"),
}
_SIZES: dict[str, tuple[int, ...]] = {
    "vit_base_patch32_clip_{}": (224, 256, 384, 448),
    "vit_base_patch16_clip_{}": (224, 384),
    "vit_base_patch16_plus_clip_{}": (240,),
    "vit_large_patch14_clip_{}": (224, 336),
    "vit_huge_patch14_clip_{}": (224, 336, 378),
    "vit_large_patch14_clip_quickgelu_{}": (224, 336),
    "vit_huge_patch14_clip_quickgelu_{}": (224, 378),
    "vit_base_patch32_siglip_{}": (256,),
    "vit_base_patch16_siglip_{}": (224, 256, 384, 512),
    "vit_large_patch16_siglip_{}": (256, 384),
    "vit_so400m_patch14_siglip_{}": (224, 378, 384),
    "vit_so400m_patch16_siglip_{}": (256, 384, 512),
    "vit_giantopt_patch16_siglip_{}": (256, 384),
}
"""Pixels of a side for which timm has a name; (224,) for the others."""


def timm_vit(family: Family, sizes: Vit, *, image_size: int) -> tuple[str, dict[str, Any]]:
    """The name and the options with which timm builds a ViT of these sizes.

    Returns:
        The name of a known model and no options, or but its activation; otherwise the name of the base model of the
        family and everything in which it may differ.
    """
    known = _CLIP if family == "clip" else _SIGLIP
    for pattern, vit in sorted(known.items(), key=lambda item: item[1].activation != sizes.activation):
        if vit._replace(activation=sizes.activation) == sizes:
            named = _SIZES.get(pattern, (224,))
            name = pattern.format(image_size if image_size in named else named[0])
            return name, {} if vit.activation == sizes.activation else {"act_layer": sizes.activation}
    options: dict[str, Any] = {
        "embed_dim": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.heads,
        "patch_size": sizes.patch,
    }
    if sizes.hidden != 4 * sizes.width:
        options["mlp_ratio"] = ratio(sizes.hidden, sizes.width)
    if sizes.activation != "gelu":
        options["act_layer"] = sizes.activation
    return f"vit_base_patch16_{family}_224", options


def ratio(hidden: int, width: int) -> float:
    """The `mlp_ratio` whose product with the width, cut to an integer, is `hidden`."""
    quotient = hidden / width
    return quotient if int(width * quotient) == hidden else (hidden + 0.5) / width
