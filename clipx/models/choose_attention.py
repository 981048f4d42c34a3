"""The kernels that compute attention in both towers of a run: on CUDA, in half precision, the fastest in a trial.

Shape suffixes: T tokens of all sequences, H heads, E channels of a head.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from clipx.config.phases import Phase
from clipx.distributed.collectives import rank
from clipx.models.attention.backends import Choice, Kernel, attend, attend_in_one_tile, cudnn_is_sound
from clipx.models.attention.one_tile import MAX_TOKENS, has_one_tile
from clipx.models.attention.trial import Attention, Shape, fastest
from clipx.models.clip import CLIP
from clipx.models.packing import attend_packed, pack
from clipx.models.patch_drop import num_kept
from clipx.models.text_tower import Attention as TextAttention
from clipx.models.text_tower import TextTower
from clipx.models.vision_tower import VisionTower
from clipx.models.vit import Block, num_patches

log = logging.getLogger(__name__)

_HALF = {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp16": torch.float16}
"""The dtype of attention by the run's precision; other precisions leave it to torch."""
_NUM_SEQUENCES = 256
_NUM_TOKENS = 16_384
"""Most sequences, and tokens where all have one length, that are timed: enough for all multiprocessors, and done in
milliseconds."""


def choose_attention(
    model: CLIP,
    *,
    phase: Phase,
    precision: str,
    device: torch.device,
    on_trial: bool,
    group: ProcessGroup | None,
) -> None:
    """Tells the blocks of both towers which kernel computes attention for the phase's inputs; all ranks alike.

    It takes a fraction of a second, and seconds more where Triton has not compiled the kernels yet. If not `on_trial`
    nothing is tried, and nothing depends on a time: it is flash attention, as for all inputs that were not tried.
    """
    dtype = _HALF.get(precision)
    if device.type != "cuda" or dtype is None:
        return
    if not on_trial:
        if rank(group) == 0:
            log.info("attention: flash, as attention=flash or deterministic=true asks for")
        return
    _choose_for_images(model.image_tower, phase=phase, dtype=dtype, device=device, group=group)
    if isinstance(model.text_tower, TextTower):
        _choose_for_texts(model.text_tower, phase=phase, dtype=dtype, device=device, group=group)


def _choose_for_images(
    tower: VisionTower, *, phase: Phase, dtype: torch.dtype, device: torch.device, group: ProcessGroup | None
) -> None:
    blocks = [module for module in tower.modules() if isinstance(module, Block) and module.num_results is None]
    if not tower.is_plain_vit or not blocks:
        return
    attention = blocks[0].attn
    patches = num_kept(num_patches(tower.trunk, phase.image_size, phase.image_size), phase.patch_drop)
    num_tokens = cast(int, tower.trunk.num_prefix_tokens) + patches
    channels = attention.head_dim
    candidates: dict[Kernel, Attention] = {name: partial(_image_attention, name) for name in ("flash", "efficient")}
    if cudnn_is_sound(num_tokens):
        candidates["cudnn"] = partial(_image_attention, "cudnn")
    if has_one_tile(num_tokens=num_tokens, channels=channels) and all(block.takes_packed for block in blocks):
        candidates["one_tile"] = partial(_image_attention, "one_tile")
    shape = Shape(
        name=f"images of {num_tokens} tokens, {attention.num_heads} heads of {channels}",
        lengths=(num_tokens,) * min(_NUM_SEQUENCES, -(-_NUM_TOKENS // num_tokens)),
        num_checked=2,
        heads=attention.num_heads,
        channels=channels,
        causal=False,
        dtype=dtype,
        device=device,
    )
    kernel = fastest(shape, candidates, group=group)
    for block in blocks:
        block.choice = None if kernel is None else Choice(num_tokens, dtype, kernel)


def _image_attention(kernel: Kernel, lengths: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def compute(qkv_T3HE: Tensor) -> Tensor:
        qkv_BN3HE = qkv_T3HE.unflatten(0, (len(lengths), lengths[0]))
        if kernel == "one_tile":
            return attend_in_one_tile(qkv_BN3HE).flatten(0, 1)
        q_BNHE, k_BNHE, v_BNHE = qkv_BN3HE.unbind(2)
        return attend(q_BNHE, k_BNHE, v_BNHE, kernel=kernel).flatten(0, 1)

    return compute


def _choose_for_texts(
    tower: TextTower, *, phase: Phase, dtype: torch.dtype, device: torch.device, group: ProcessGroup | None
) -> None:
    layers = [module for module in tower.modules() if isinstance(module, TextAttention)]
    heads, channels = layers[0].heads, layers[0].proj.in_features // layers[0].heads
    if phase.context_length > MAX_TOKENS:
        return
    # As captions are: most of them short, a few of them long. The first ones reach every tile.
    lengths = tuple(max(1, phase.context_length * (number % 8 + 1) ** 3 // 512) for number in range(_NUM_SEQUENCES))
    if tower.is_padded:
        lengths = (phase.context_length,) * min(_NUM_SEQUENCES, -(-_NUM_TOKENS // phase.context_length))
    shape = Shape(
        name=f"texts of at most {phase.context_length} tokens, {heads} heads of {channels}",
        lengths=lengths,
        num_checked=8,
        heads=heads,
        channels=channels,
        causal=layers[0].causal,
        dtype=dtype,
        device=device,
    )
    attention = partial(_text_attention, causal=shape.causal, device=device)
    candidates: dict[Kernel, Attention] = {"flash": partial(attention, None)}
    if has_one_tile(num_tokens=phase.context_length, channels=channels):
        candidates["one_tile"] = partial(attention, dtype)
    kernel = fastest(shape, candidates, group=group)
    for layer in layers:
        layer.one_tile = dtype if kernel == "one_tile" else None


def _text_attention(
    one_tile: torch.dtype | None, lengths: Sequence[int], *, causal: bool, device: torch.device
) -> Callable[[Tensor], Tensor]:
    packing = pack(torch.tensor(lengths, device=device), num_tokens=sum(lengths), max_length=max(lengths))
    return partial(attend_packed, packing=packing, causal=causal, one_tile=one_tile)
