"""The towers of a model as plain modules over padded inputs, which torch.export takes; they compute the same.

An image tower's fast forward pass starts at uint8, and a text tower's runs packed: both are for training. What is
deployed takes what every other library gives: normalised pixels, and padded rows of token ids with a mask.

Shapes: B images or texts, L tokens, S image size, C channels, H heads, K channels of a head, D embedding.
"""

import copy
from typing import Any, TypeVar, assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.model import TextConfig, TransformerTextConfig
from clipx.export.options import Tower
from clipx.models.clip import CLIP
from clipx.models.huggingface_text import HuggingFaceTextTower
from clipx.models.text_tower import Block, TextTower
from clipx.models.vision_tower import VisionTower

_Tower = TypeVar("_Tower", bound=nn.Module)


class Plain(nn.Module):
    """A tower that takes and gives float32, whatever the dtype of its weights.

    Args:
        dtype: of the weights.
        unit_length: whether embeddings have unit length.
    """

    def __init__(self, *, dtype: torch.dtype, unit_length: bool) -> None:
        super().__init__()
        self.dtype, self.unit_length = dtype, unit_length

    def finish(self, embeddings_BD: Tensor) -> Tensor:
        """The tower's result as it is given."""
        embeddings_BD = embeddings_BD.float()
        return functional.normalize(embeddings_BD, dim=-1) if self.unit_length else embeddings_BD


class PlainImage(Plain):
    """Maps pixel_values, normalised float32 (B, 3, S, S), to embeddings (B, D)."""

    def __init__(self, tower: VisionTower, **kind: Any) -> None:
        super().__init__(**kind)
        self.trunk, self.projection = tower.trunk, tower.projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """By the trunk's own forward pass."""
        return self.finish(self.projection(self.trunk(pixel_values.to(self.dtype))))


class PlainText(Plain):
    """Maps input_ids, int64 (B, L), to embeddings (B, D), like `TextTower`.

    attention_mask, int64 (B, L), is 1 for the tokens of a text and 0 after them; without it all L are the text, and
    `pad`, if there is one, is the id that stands for the model's own padding, 0.
    """

    def __init__(self, tower: TextTower, *, pad: int | None = None, **kind: Any) -> None:
        super().__init__(**kind)
        self.tower, self.pad = tower, pad

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Padded, without packing."""
        tower = self.tower
        if self.pad is not None:
            input_ids = input_ids.masked_fill(input_ids == self.pad, 0)
        x_BLC = tower.token_embedding(input_ids) + tower.position_embedding.weight[: input_ids.shape[1]]
        for block in tower.blocks:
            x_BLC = _run_block(cast(Block, block), x_BLC, attention_mask)
        return self.finish(tower.projection(tower.norm(_last(x_BLC, attention_mask))))


class PlainEncoder(Plain):
    """Maps input_ids and attention_mask, as of `PlainText`, to embeddings, like `HuggingFaceTextTower`."""

    def __init__(self, tower: HuggingFaceTextTower, **kind: Any) -> None:
        super().__init__(**kind)
        self.encoder, self.projection = tower.encoder, tower.projection
        self.pool, self.pad_token_id = tower.pool, tower.pad_token_id

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Whatever ids the padding has, the encoder sees its own."""
        input_ids = input_ids.masked_fill(attention_mask == 0, self.pad_token_id)
        x_BLC = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.finish(self.projection(self._pool(x_BLC, attention_mask)))

    def _pool(self, x_BLC: Tensor, attention_mask: Tensor) -> Tensor:
        match self.pool:
            case "cls":
                return x_BLC[:, 0]
            case "mean":
                weight_BL1 = attention_mask[..., None].to(x_BLC.dtype)
                return (x_BLC * weight_BL1).sum(1) / weight_BL1.sum(1)
            case "last":
                return _last(x_BLC, attention_mask)
            case unknown:
                assert_never(unknown)


def padded_length(text: TextConfig) -> int | None:
    """The number of tokens to which every text is padded, which count as text; None: none."""
    return text.pad if isinstance(text, TransformerTextConfig) else None


def plain_problem(model: CLIP, only: Tower | None = None) -> str | None:
    """Why a model, or its one tower, has no plain form, in words that end an InputError; None: it has."""
    tower = model.text_tower
    if only == "image" or isinstance(tower, TextTower | HuggingFaceTextTower):
        return None
    return f"its text tower is of type {type(tower).__name__}, of which clipx knows no padded form"


def plain_image(tower: VisionTower, *, dtype: torch.dtype = torch.float32, unit_length: bool = False) -> PlainImage:
    """A plain copy of an image tower, on the CPU, for evaluation; for the arguments see `Plain`."""
    return PlainImage(_copied(tower, dtype), dtype=dtype, unit_length=unit_length)


def plain_text(
    tower: nn.Module, *, dtype: torch.dtype = torch.float32, unit_length: bool = False, pad: int | None = None
) -> Plain:
    """A plain copy of a text tower, on the CPU, for evaluation; for the arguments see `Plain` and `PlainText`."""
    copied = _copied(tower, dtype)
    if isinstance(copied, TextTower):
        return PlainText(copied, dtype=dtype, unit_length=unit_length, pad=pad)
    assert isinstance(copied, HuggingFaceTextTower), f"a text tower of type {type(tower).__name__}"
    cast(Any, copied.encoder).set_attn_implementation("eager")  # our packed attention has no padded form
    return PlainEncoder(copied, dtype=dtype, unit_length=unit_length)


def _copied(tower: _Tower, dtype: torch.dtype) -> _Tower:
    return copy.deepcopy(tower).to(device="cpu", dtype=dtype).eval()


def _run_block(block: Block, x_BLC: Tensor, attention_mask: Tensor | None) -> Tensor:
    attention = block.attn
    qkv_BL3HK = attention.qkv(block.norm1(x_BLC)).unflatten(-1, (3, attention.heads, -1))
    q_BHLK, k_BHLK, v_BHLK = (x.transpose(1, 2) for x in qkv_BL3HK.unbind(2))
    masked = None
    if attention_mask is not None and not attention.causal:  # causal: what comes after a text changes nothing in it
        masked = attention_mask.bool()[:, None, None]
    mixed_BHLK = functional.scaled_dot_product_attention(
        q_BHLK, k_BHLK, v_BHLK, attn_mask=masked, is_causal=attention.causal
    )
    x_BLC = x_BLC + attention.proj(mixed_BHLK.transpose(1, 2).flatten(2))
    return x_BLC + block.mlp(block.norm2(x_BLC))


def _last(x_BLC: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The state of each text's last token (B, C)."""
    if attention_mask is None:
        return x_BLC[:, -1]
    last_B11 = (attention_mask.sum(1) - 1)[:, None, None]
    return x_BLC.gather(1, last_B11.expand(-1, 1, x_BLC.shape[2]))[:, 0]
