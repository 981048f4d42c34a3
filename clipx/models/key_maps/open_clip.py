"""Names of weights in open_clip's `CLIP`."""

from clipx.models.key_maps.key_map import KeyMap, Rule, scalar, transposed, trunk_embeddings


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


CLIP = KeyMap(
    "open_clip",
    (
        *trunk_embeddings("visual.class_embedding", "visual.positional_embedding"),
        Rule("image_tower.trunk.patch_embed.proj.weight", ("visual.conv1.weight",)),
        Rule("image_tower.trunk.norm_pre.*", ("visual.ln_pre.*",)),
        *_blocks("image_tower.trunk.blocks", "visual.transformer.resblocks"),
        Rule("image_tower.trunk.norm.*", ("visual.ln_post.*",)),
        transposed("image_tower.projection.weight", "visual.proj"),
        Rule("text_tower.token_embedding.weight", ("token_embedding.weight",)),
        Rule("text_tower.position_embedding.weight", ("positional_embedding",)),
        *_blocks("text_tower.blocks", "transformer.resblocks"),
        Rule("text_tower.norm.*", ("ln_final.*",)),
        transposed("text_tower.projection.weight", "text_projection"),
        scalar("log_logit_scale", "logit_scale"),
        scalar("logit_bias", "logit_bias"),
    ),
)
