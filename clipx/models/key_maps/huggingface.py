"""Names of weights in transformers' `CLIPModel`."""

from clipx.models.key_maps.key_map import KeyMap, Rule, scalar, trunk_embeddings


def _blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    attention = tuple(f"{theirs}.*.self_attn.{name}_proj.*" for name in "qkv")
    return (
        Rule(f"{ours}.*.norm1.*", (f"{theirs}.*.layer_norm1.*",)),
        Rule(f"{ours}.*.attn.qkv.*", attention),
        Rule(f"{ours}.*.attn.proj.*", (f"{theirs}.*.self_attn.out_proj.*",)),
        Rule(f"{ours}.*.norm2.*", (f"{theirs}.*.layer_norm2.*",)),
        Rule(f"{ours}.*.mlp.fc1.*", (f"{theirs}.*.mlp.fc1.*",)),
        Rule(f"{ours}.*.mlp.fc2.*", (f"{theirs}.*.mlp.fc2.*",)),
    )


CLIP = KeyMap(
    "transformers",
    (
        *trunk_embeddings(
            "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
        ),
        Rule("image_tower.trunk.patch_embed.proj.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Rule("image_tower.trunk.norm_pre.*", ("vision_model.pre_layrnorm.*",)),  # spelled like this in transformers
        *_blocks("image_tower.trunk.blocks", "vision_model.encoder.layers"),
        Rule("image_tower.trunk.norm.*", ("vision_model.post_layernorm.*",)),
        Rule("image_tower.projection.weight", ("visual_projection.weight",)),
        Rule("text_tower.token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule("text_tower.position_embedding.weight", ("text_model.embeddings.position_embedding.weight",)),
        *_blocks("text_tower.blocks", "text_model.encoder.layers"),
        Rule("text_tower.norm.*", ("text_model.final_layer_norm.*",)),
        Rule("text_tower.projection.weight", ("text_projection.weight",)),
        scalar("log_logit_scale", "logit_scale"),
    ),
)
