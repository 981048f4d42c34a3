"""CLIP, a model of two towers with a shared embedding space: maps a `Batch` to `Embeddings`.

Shape suffixes: B pairs of this rank or micro-batch, H and W pixels, C channels, T real tokens, D embedding.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipx.config.model import ModelConfig
from clipx.errors import InputError
from clipx.models.patch_drop import patch_keys
from clipx.models.text_tower import TextTower, build_text_tower
from clipx.models.vision_tower import VisionTower, build_vision_tower
from clipx.types import Batch, Embeddings


class CLIP(nn.Module):
    """CLIP (arXiv 2103.00020, figure 3): two towers, unit-length embeddings, a learned multiplier of similarities.

    Args:
        image_tower: (images_BHWC, patch_keys_B) to (B, D).
        text_tower: (tokens_T, lengths_B, max_length=) to (B, D).
        init_logit_scale: initial value of the multiplier, of which `max_logit_scale` is the limit.
        init_logit_bias: initial value of the bias of the logits; None means that there is no bias.
    """

    def __init__(
        self,
        image_tower: VisionTower,
        *,
        text_tower: nn.Module,
        init_logit_scale: float,
        max_logit_scale: float,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.image_tower = image_tower
        self.text_tower = text_tower
        # Shape (1,) and not (): FSDP2 does not shard scalars.
        self.log_logit_scale = nn.Parameter(torch.full((1,), math.log(init_logit_scale)))
        self.logit_bias = None if init_logit_bias is None else nn.Parameter(torch.full((1,), float(init_logit_bias)))
        self.max_log_logit_scale = math.log(max_logit_scale)

    def encode_image(
        self, images_BHWC: Tensor, patch_keys_B: Tensor | None = None, *, patch_drop: float = 0.0
    ) -> Tensor:
        """Maps uint8 (B, H, W, 3) to unit-length (B, D); for the other arguments see `VisionTower.forward`."""
        return _unit_length(self.image_tower(images_BHWC, patch_keys_B, patch_drop=patch_drop))

    def encode_text(self, tokens_T: Tensor, lengths_B: Tensor, *, max_length: int) -> Tensor:
        """Maps flat int64 tokens (T,) with lengths (B,), each at most `max_length`, to unit-length (B, D)."""
        return _unit_length(self.text_tower(tokens_T, lengths_B, max_length=max_length))

    def forward(self, batch: Batch, *, seed: int, patch_drop: float = 0.0) -> Embeddings:
        """Embeds a batch or a part of one.

        Args:
            batch: B pairs.
            seed: of the run; patch dropout draws from (seed, batch.index, batch.slot_I) and nothing else, so a repeated
                forward pass leaves out the same patches.
            patch_drop: share of each image's patches to leave out.

        Returns:
            Embeddings in the towers' compute dtype (bf16 under autocast), normalised in at least float32; the
            multiplier and the bias in their parameters' dtype.
        """
        captions = batch.captions_per_image
        keys_I = patch_keys(seed, batch.index, batch.slot_I) if patch_drop > 0 else None
        # Not by `self.encode_image`: under FSDP2 that is a forward pass of its own, after which weights are let go.
        image_ID = CLIP.encode_image(self, batch.images_IHWC, keys_I, patch_drop=patch_drop)
        return Embeddings(
            image_BD=image_ID if captions == 1 else image_ID.repeat_interleave(captions, dim=0),
            text_BD=CLIP.encode_text(self, batch.tokens_T, batch.lengths_B, max_length=batch.max_length),
            logit_scale=self.log_logit_scale.exp(),
            # A copy, so that every field is the result of this forward pass and none is a parameter itself.
            logit_bias=None if self.logit_bias is None else self.logit_bias.clone(),
        )

    def block_lists(self) -> list[list[nn.Module]]:
        """The repeated blocks of each tower: what is compiled, checkpointed and sharded one by one."""
        return [_blocks(tower) for tower in (self.image_tower, self.text_tower)]

    def blocks(self) -> list[nn.Module]:
        """The blocks of both towers."""
        return [block for blocks in self.block_lists() for block in blocks]

    def use_few_shapes(self, on: bool) -> None:
        """Whether texts are padded so that the blocks see few different shapes (`TextTower.bucketed`)."""
        if isinstance(self.text_tower, TextTower):
            self.text_tower.bucketed = on

    @torch.no_grad()
    def clamp_logit_scale_(self) -> None:
        """Clamps the multiplier to its maximum; call it after every optimizer step.

        It clamps the parameter, as CLIP's training does, and not the value in `forward`: a clamp there has no gradient
        above the maximum, so a parameter that exceeds it once would stay there.
        """
        self.log_logit_scale.clamp_(max=self.max_log_logit_scale)


def _blocks(tower: nn.Module) -> list[nn.Module]:
    """The blocks of the tower: the members of its list with the most weights; empty if no list holds blocks."""
    lists = [list(module.children()) for module in tower.modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    stacks = [members for members in lists if all(map(_is_block, members))]
    return max(stacks, key=lambda blocks: sum(w.numel() for block in blocks for w in block.parameters()), default=[])


def _is_block(module: nn.Module) -> bool:
    """Whether the module has a forward pass, unlike a list, and layers inside: a single layer may change its input."""
    return not isinstance(module, nn.ModuleList) and any(module.children())


def _unit_length(x_BD: Tensor) -> Tensor:
    """Divides each row by its length, computed in at least float32; the result has x's dtype."""
    promoted_BD = x_BD.to(torch.promote_types(x_BD.dtype, torch.float32))
    return functional.normalize(promoted_BD, dim=-1).to(x_BD.dtype)


def build_model(config: ModelConfig, *, vocab_size: int, seed: int, kind: Callable[..., CLIP] = CLIP) -> CLIP:
    """Builds the model from its config, on the CPU, in float32.

    Args:
        config: both towers, the embedding space, the multiplier and the bias.
        vocab_size: number of the tokenizer's ids.
        seed: determines every initial weight; torch's global generators do not change.
        kind: makes the model of both towers: CLIP, or a subclass with the same arguments.

    Raises:
        InputError: a tower cannot be built, or the initial multiplier is above its maximum.
    """
    if config.init_logit_scale > config.max_logit_scale:
        raise InputError(
            f"model.init_logit_scale={config.init_logit_scale} is above "
            f"model.max_logit_scale={config.max_logit_scale}; lower the first"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device as well
        return kind(
            build_vision_tower(config.image, embed_dim=config.embed_dim, projection=config.projection),
            text_tower=build_text_tower(
                config.text, vocab_size=vocab_size, embed_dim=config.embed_dim, projection=config.projection
            ),
            init_logit_scale=config.init_logit_scale,
            max_logit_scale=config.max_logit_scale,
            init_logit_bias=config.init_logit_bias,
        )
