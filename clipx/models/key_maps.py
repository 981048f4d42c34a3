"""Translates names of weights to those of transformers' `CLIPModel` and of open_clip's `CLIP`, and back.

A rule has the name of one of our parameters and its name in the other library; `*` matches one part of a dotted name
(block number, weight or bias). Both our towers use the same names in their blocks, so the lists of rules are short.
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
    """Our parameter `ours` is `theirs`; several of theirs are concatenated along the first dimension."""

    ours: str
    theirs: tuple[str, ...]
    to_theirs: Callable[[Tensor], Tensor] = _as_is
    """Converts our shape to theirs."""
    to_ours: Callable[[Tensor], Tensor] = _as_is
    """Converts their shape to ours."""


class KeyMap:
    """Converts names and shapes between a clipx model's weights and those of another library.

    Args:
        library: name of the library, for messages.
        rules: one for every kind of parameter of the library's CLIP.
    """

    def __init__(self, library: str, rules: tuple[Rule, ...]) -> None:
        self.library = library
        self._rules = rules

    def to_theirs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies of our weights under the library's names.

        Raises:
            InputError: the library's CLIP does not have one of the parameters.
        """
        theirs: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            for rule in self._rules:
                if (parts := _match(rule.ours, name)) is not None:
                    converted = rule.to_theirs(tensor)
                    pieces = converted.chunk(len(rule.theirs)) if len(rule.theirs) > 1 else (converted,)
                    names = (_fill(pattern, parts) for pattern in rule.theirs)
                    theirs |= {new: piece.contiguous().clone() for new, piece in zip(names, pieces, strict=True)}
                    break
            else:
                raise InputError(f"{self.library}'s CLIP has no place for the parameter {name}; leave that format out")
        return theirs

    def to_ours(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library's weights under our names, without entries that are not weights of its CLIP."""
        ours: dict[str, Tensor] = {}
        for name in weights:
            for rule in self._rules:
                if (parts := _match(rule.theirs[0], name)) is not None:
                    pieces = [weights[_fill(pattern, parts)] for pattern in rule.theirs]
                    joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                    ours[_fill(rule.ours, parts)] = rule.to_ours(joined)
        return ours


def _match(pattern: str, name: str) -> list[str] | None:
    """The parts of `name` that the stars of the pattern match; None if the pattern does not match."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", r"([^.]+)"), name)
    return None if match is None else list(match.groups())


def _fill(pattern: str, parts: list[str]) -> str:
    filled = iter(parts)
    return re.sub(r"\*", lambda _: next(filled), pattern)


def _scalar(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), to_theirs=lambda x: x.reshape(()), to_ours=lambda x: x.reshape(1))


def _transposed(ours: str, theirs: str) -> Rule:
    return Rule(ours, (theirs,), to_theirs=lambda x: x.T, to_ours=lambda x: x.T)


def _trunk_embeddings(class_token: str, positions: str) -> tuple[Rule, Rule]:
    """Rules that remove timm's batch dimension from both, and its token dimension from the class token."""
    trunk = "image_tower.trunk"
    return (
        Rule(f"{trunk}.cls_token", (class_token,), to_theirs=lambda x: x[0, 0], to_ours=lambda x: x[None, None]),
        Rule(f"{trunk}.pos_embed", (positions,), to_theirs=lambda x: x[0], to_ours=lambda x: x[None]),
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
        Rule("image_tower.trunk.norm_pre.*", ("vision_model.pre_layrnorm.*",)),  # spelled like this in transformers
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
