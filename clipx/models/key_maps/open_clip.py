"""Names of weights in open_clip's `CLIP` and `CustomTextCLIP`.

Which of its classes a tower is stands in the model's config and not in the names, so there is a map for each
combination.
"""

from dataclasses import dataclass
from functools import cache

from clipx.models.key_maps.key_map import KeyMap, Rule, scalar, transposed, trunk_embeddings


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The classes of a model's two towers in open_clip."""

    timm_image: bool = False
    """Images by its wrapper of timm; otherwise by its own ViT."""
    norm_after_pool: bool = False
    """In timm the last norm of its own ViT stands after pooling, where it has another name."""
    transformers_text: bool = False
    """Texts by its wrapper of transformers; otherwise by its own Transformer."""
    text_bias: bool = False
    """The projection of its own text tower has a bias, and is then a module and no matrix."""
    custom_text: bool = False
    """The weights of its own text tower lie under `text.`."""


@cache
def key_map(towers: Towers) -> KeyMap:
    """The names of all weights of a model with these towers."""
    return KeyMap(
        "open_clip",
        (
            *(_TIMM_IMAGE if towers.timm_image else _own_image(towers)),
            *(_TRANSFORMERS_TEXT if towers.transformers_text else _own_text(towers)),
            scalar("log_logit_scale", "logit_scale"),
            scalar("logit_bias", "logit_bias"),
        ),
    )


def _own_image(towers: Towers) -> tuple[Rule, ...]:
    trunk = "image_tower.trunk"
    return (
        *trunk_embeddings("visual.class_embedding", "visual.positional_embedding"),
        Rule(f"{trunk}.patch_embed.proj.weight", ("visual.conv1.weight",)),
        Rule(f"{trunk}.norm_pre.*", ("visual.ln_pre.*",)),
        *_blocks(f"{trunk}.blocks", "visual.transformer.resblocks"),
        Rule(f"{trunk}.blocks.*.ls1.gamma", ("visual.transformer.resblocks.*.ls_1.gamma",)),
        Rule(f"{trunk}.blocks.*.ls2.gamma", ("visual.transformer.resblocks.*.ls_2.gamma",)),
        Rule(f"{trunk}.{'fc_norm' if towers.norm_after_pool else 'norm'}.*", ("visual.ln_post.*",)),
        transposed("image_tower.projection.weight", "visual.proj"),
    )


_TIMM_IMAGE = (
    Rule("image_tower.trunk.**", ("visual.trunk.**",)),
    Rule("image_tower.projection.weight", ("visual.head.proj.weight",)),
    Rule("image_tower.projection.0.*", ("visual.head.mlp.fc1.*",)),
    Rule("image_tower.projection.2.*", ("visual.head.mlp.fc2.*",)),
)


def _own_text(towers: Towers) -> tuple[Rule, ...]:
    under = "text." if towers.custom_text else ""
    matrix = transposed("text_tower.projection.weight", f"{under}text_projection")
    module = Rule("text_tower.projection.*", (f"{under}text_projection.*",))
    return (
        Rule("text_tower.token_embedding.weight", (f"{under}token_embedding.weight",)),
        Rule("text_tower.position_embedding.weight", (f"{under}positional_embedding",)),
        *_blocks("text_tower.blocks", f"{under}transformer.resblocks"),
        Rule("text_tower.norm.*", (f"{under}ln_final.*",)),
        module if towers.text_bias else matrix,
    )


_TRANSFORMERS_TEXT = (
    Rule("text_tower.encoder.**", ("text.transformer.**",)),
    Rule("text_tower.projection.weight", ("text.proj.weight",)),
    Rule("text_tower.projection.*.weight", ("text.proj.*.weight",)),
)


def _blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.*.norm1.*", (f"{theirs}.*.ln_1.*",)),
        Rule(f"{ours}.*.attn.qkv.weight", (f"{theirs}.*.attn.in_proj_weight",)),
        Rule(f"{ours}.*.attn.qkv.bias", (f"{theirs}.*.attn.in_proj_bias",)),
        Rule(f"{ours}.*.attn.proj.*", (f"{theirs}.*.attn.out_proj.*",)),
        Rule(f"{ours}.*.norm2.*", (f"{theirs}.*.ln_2.*",)),
        Rule(f"{ours}.*.mlp.fc1.*", (f"{theirs}.*.mlp.c_fc.*",)),
        Rule(f"{ours}.*.mlp.fc2.*", (f"{theirs}.*.mlp.c_proj.*",)),
    )
