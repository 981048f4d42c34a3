"""Names of weights in transformers' `CLIPModel` and in open_clip's `CLIP`, both ways.

A rule says how one of our parameters is called elsewhere: `*` stands for one part of a dotted name (block number,
weight or bias). Both towers name their blocks alike, so each library's list is short.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.errors import InputError


def _as_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Rule:
    """Our parameter `ours` is `theirs` (end to end along the first dimension where there are several)."""

    ours: str
    theirs: tuple[str, ...]
    there: Callable[[Tensor], Tensor] = _as_is
    """From our shape to theirs."""
    back: Callable[[Tensor], Tensor] = _as_is
    """From their shape to ours."""


class KeyMap:
    """A clipx model's weights under another library's names and shapes, and back.

    Args:
        library: for messages.
        rules: one for every kind of parameter that the library's CLIP has.
    """

    def __init__(self, library: str, rules: tuple[Rule, ...]) -> None:
        self.library = library
        self._rules = rules

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies under the library's names.

        Raises:
            InputError: the library has no place for a parameter.
        """
        theirs: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            for rule in self._rules:
                if (parts := _match(rule.ours, name)) is not None:
                    whole = rule.there(tensor)
                    pieces = whole.chunk(len(rule.theirs)) if len(rule.theirs) > 1 else (whole,)
                    names = (_fill(pattern, parts) for pattern in rule.theirs)
                    theirs |= {new: piece.contiguous().clone() for new, piece in zip(names, pieces, strict=True)}
                    break
            else:
                raise InputError(f"{self.library}'s CLIP has no place for the parameter {name}; leave that format out")
        return theirs

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library's weights under our names; whatever is no weight of its CLIP is left out."""
        ours: dict[str, Tensor] = {}
        for name in weights:
            for rule in self._rules:
                if (parts := _match(rule.theirs[0], name)) is not None:
                    pieces = [weights[_fill(pattern, parts)] for pattern in rule.theirs]
                    joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                    ours[_fill(rule.ours, parts)] = rule.back(joined)
        return ours


def _match(pattern: str, name: str) -> list[str] | None:
    """What the stars of the pattern stand for in `name`, or None if it does not fit."""
    found = re.fullmatch(re.escape(pattern).replace(r"\*", r"([^.]+)"), name)
    return None if found is None else list(found.groups())


def _fill(pattern: str, parts: list[str]) -> str:
    filled = iter(parts)
    return re.sub(r"\*", lambda _: next(filled), pattern)


def _scalar(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), there=lambda x: x.reshape(()), back=lambda x: x.reshape(1))


def _transposed(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), there=lambda x: x.T, back=lambda x: x.T)


def _trunk_embeddings(class_token: str, positions: str) -> tuple[Rule, Rule]:
    """timm keeps a batch dimension on both, and a token dimension on the class token."""
    return (
        Rule("image_tower.trunk.cls_token", (class_token,), there=lambda x: x[0, 0], back=lambda x: x[None, None]),
        Rule("image_tower.trunk.pos_embed", (positions,), there=lambda x: x[0], back=lambda x: x[None]),
    )


def _huggingface_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    attention = tuple(f"{theirs}.*.self_attn.{name}_proj.*" for name in "qkv")
    return (
        Rule(f"{ours}.*.norm1.*", (f"{theirs}.*.layer_norm1.*",)),
        Rule(f"{ours}.*.attn.qkv.*", attention),
        Rule(f"{ours}.*.attn.proj.*", (f"{theirs}.*.self_attn.out_proj.*",)),
        Rule(f"{ours}.*.norm2.*", (f"{theirs}.*.layer_norm2.*",)),
        Rule(f"{ours}.*.mlp.fc1.*", (f"{theirs}.*.mlp.fc1.*",)),
        Rule(f"{ours}.*.mlp.fc2.*", (f"{theirs}.*.mlp.fc2.*",)),
    )


def _open_clip_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{ours}.*.norm1.*", (f"{theirs}.*.ln_1.*",)),
        Rule(f"{ours}.*.attn.qkv.weight", (f"{theirs}.*.attn.in_proj_weight",)),
        Rule(f"{ours}.*.attn.qkv.bias", (f"{theirs}.*.attn.in_proj_bias",)),
        Rule(f"{ours}.*.attn.proj.*", (f"{theirs}.*.attn.out_proj.*",)),
        Rule(f"{ours}.*.norm2.*", (f"{theirs}.*.ln_2.*",)),
        Rule(f"{ours}.*.mlp.fc1.*", (f"{theirs}.*.mlp.c_fc.*",)),
        Rule(f"{ours}.*.mlp.fc2.*", (f"{theirs}.*.mlp.c_proj.*",)),
    )


HUGGINGFACE = KeyMap(
    "transformers",
    (
        *_trunk_embeddings(
            "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
        ),
        Rule("image_tower.trunk.patch_embed.proj.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Rule("image_tower.trunk.norm_pre.*", ("vision_model.pre_layrnorm.*",)),  # their spelling
        *_huggingface_blocks("image_tower.trunk.blocks", "vision_model.encoder.layers"),
        Rule("image_tower.trunk.norm.*", ("vision_model.post_layernorm.*",)),
        Rule("image_tower.projection.weight", ("visual_projection.weight",)),
        Rule("text_tower.token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule("text_tower.position_embedding.weight", ("text_model.embeddings.position_embedding.weight",)),
        *_huggingface_blocks("text_tower.blocks", "text_model.encoder.layers"),
        Rule("text_tower.norm.*", ("text_model.final_layer_norm.*",)),
        Rule("text_tower.projection.weight", ("text_projection.weight",)),
        _scalar("log_logit_scale", "logit_scale"),
    ),
)

OPEN_CLIP = KeyMap(
    "open_clip",
    (
        *_trunk_embeddings("visual.class_embedding", "visual.positional_embedding"),
        Rule("image_tower.trunk.patch_embed.proj.weight", ("visual.conv1.weight",)),
        Rule("image_tower.trunk.norm_pre.*", ("visual.ln_pre.*",)),
        *_open_clip_blocks("image_tower.trunk.blocks", "visual.transformer.resblocks"),
        Rule("image_tower.trunk.norm.*", ("visual.ln_post.*",)),
        _transposed("image_tower.projection.weight", "visual.proj"),
        Rule("text_tower.token_embedding.weight", ("token_embedding.weight",)),
        Rule("text_tower.position_embedding.weight", ("positional_embedding",)),
        *_open_clip_blocks("text_tower.blocks", "transformer.resblocks"),
        Rule("text_tower.norm.*", ("ln_final.*",)),
        _transposed("text_tower.projection.weight", "text_projection"),
        _scalar("log_logit_scale", "logit_scale"),
        _scalar("logit_bias", "logit_bias"),
    ),
)
