"""Names of weights in transformers' `CLIPModel` and `SiglipModel`."""

from clipx.models.key_maps.key_map import KeyMap, Rule, scalar, trunk_embeddings

_TRUNK = "image_tower.trunk"
_HEAD = "vision_model.head"


def _blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    attention = tuple(f"{theirs}.*.self_attn.{name}_proj.*" for name in "qkv")
    return (
        Rule(f"{ours}.*.norm1.*", f"{theirs}.*.layer_norm1.*"),
        Rule(f"{ours}.*.attn.qkv.*", attention),
        Rule(f"{ours}.*.attn.proj.*", f"{theirs}.*.self_attn.out_proj.*"),
        Rule(f"{ours}.*.norm2.*", f"{theirs}.*.layer_norm2.*"),
        Rule(f"{ours}.*.mlp.fc1.*", f"{theirs}.*.mlp.fc1.*"),
        Rule(f"{ours}.*.mlp.fc2.*", f"{theirs}.*.mlp.fc2.*"),
    )


_TOWERS = (
    *_blocks(f"{_TRUNK}.blocks", "vision_model.encoder.layers"),
    Rule(f"{_TRUNK}.norm.*", "vision_model.post_layernorm.*"),
    Rule("text_tower.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    Rule("text_tower.position_embedding.weight", "text_model.embeddings.position_embedding.weight"),
    *_blocks("text_tower.blocks", "text_model.encoder.layers"),
    Rule("text_tower.norm.*", "text_model.final_layer_norm.*"),
)
_POSITIONS = "vision_model.embeddings.position_embedding.weight"

CLIP = KeyMap(
    "transformers' CLIPModel",
    (
        *trunk_embeddings("vision_model.embeddings.class_embedding", _POSITIONS),
        Rule(f"{_TRUNK}.patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight"),
        Rule(f"{_TRUNK}.norm_pre.*", "vision_model.pre_layrnorm.*"),  # spelled like this in transformers
        *_TOWERS,
        Rule("image_tower.projection.weight", "visual_projection.weight"),
        Rule("text_tower.projection.weight", "text_projection.weight"),
        scalar("log_logit_scale", "logit_scale"),
    ),
)

SIGLIP = KeyMap(
    "transformers' SiglipModel",
    (
        Rule(f"{_TRUNK}.pos_embed", _POSITIONS, to_theirs=lambda x: x[0], to_ours=lambda x: x[None]),
        Rule(f"{_TRUNK}.patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
        *_TOWERS,
        Rule(f"{_TRUNK}.attn_pool.latent", f"{_HEAD}.probe"),
        *(
            Rule(
                (f"{_TRUNK}.attn_pool.q.{kind}", f"{_TRUNK}.attn_pool.kv.{kind}"),
                f"{_HEAD}.attention.in_proj_{kind}",
                shares=(1, 2),
            )
            for kind in ("weight", "bias")
        ),
        Rule(f"{_TRUNK}.attn_pool.proj.*", f"{_HEAD}.attention.out_proj.*"),
        Rule(f"{_TRUNK}.attn_pool.norm.*", f"{_HEAD}.layernorm.*"),
        Rule(f"{_TRUNK}.attn_pool.mlp.*.*", f"{_HEAD}.mlp.*.*"),
        Rule("text_tower.projection.*", "text_model.head.*"),
        Rule("log_logit_scale", "logit_scale"),
        Rule("logit_bias", "logit_bias"),
    ),
)
