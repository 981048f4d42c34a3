"""The kernels that may compute attention on CUDA, by name, and attention by one of them.

Of torch's own, cuDNN is its first choice on Hopper, and gives NaN gradients for shapes that towers have: 64 keys more
than a multiple of 128, below version 9.26 (pytorch/pytorch #196678); one query with 128 keys, in 9.26 too
(NVIDIA/cudnn-frontend #1072), which is a last block that returns the class token. So cuDNN computes attention only
where it was tried and chosen for that very shape; elsewhere it is flash attention, or what torch has in its place.

Shape suffixes: B sequences, N keys, M queries, H heads, E channels of a head.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipx.models.attention.one_tile import one_tile_attention

Kernel = Literal["flash", "efficient", "cudnn", "one_tile"]
"""What computes attention; for inputs that `flash` does not support it is what torch prefers after it, never cuDNN."""

_CUDNN_TAIL_MENDED = 92_600
_SOUND = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_BACKENDS = {
    "flash": _SOUND,
    "efficient": [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION, *_SOUND],
}
"""In order: what was tried with few sequences may be refused with many, and then the next one computes them."""


class _Options(TypedDict, total=False):
    """Of torch's attention."""

    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None


class Choice(NamedTuple):
    """The kernel for sequences of this length in this dtype. A tuple, because torch.compile looks into tuples."""

    num_tokens: int
    dtype: torch.dtype
    kernel: Kernel


def cudnn_is_sound(num_tokens: int) -> bool:
    """Whether there is cuDNN, and no wrong gradients are known of it for self-attention of so many tokens, unmasked."""
    version = torch.backends.cudnn.version()
    if version is None:
        return False
    return num_tokens > 1 and (num_tokens % 128 != 64 or version >= _CUDNN_TAIL_MENDED)


def only(kernel: Kernel, x: Tensor) -> AbstractContextManager[object]:
    """Within it torch computes attention of tensors like x by this kernel if it can; on a CPU it does nothing."""
    return sdpa_kernel(_BACKENDS[kernel], set_priority=True) if x.is_cuda else nullcontext()


class _Passes:
    """A class, whose attributes torch.compile can look at."""

    stand_for_cuda = False


@contextmanager
def standing_for_cuda() -> Iterator[None]:
    """Within it, passes without numbers on a CPU keep for the way back what CUDA keeps."""
    _Passes.stand_for_cuda = True
    try:
        yield
    finally:
        _Passes.stand_for_cuda = False


def attend_by_torch(
    q_BHME: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, *, kernel: Kernel = "flash", **options: Unpack[_Options]
) -> Tensor:
    """Attention by torch, on CUDA by this kernel if it can: (B, H, M, E).

    On a CPU half precision is computed in float32: torch's backward pass in bf16 takes 1.2 to 8 times as long there,
    most for short sequences.
    """
    is_half = q_BHME.dtype in (torch.bfloat16, torch.float16)
    if q_BHME.device.type == "cpu" and is_half and not _Passes.stand_for_cuda:
        inputs = (q_BHME.float(), k_BHNE.float(), v_BHNE.float())
        with torch.autocast("cpu", enabled=False):  # it would cast them back
            return functional.scaled_dot_product_attention(*inputs, **options).to(q_BHME.dtype)
    with only(kernel, q_BHME):
        return functional.scaled_dot_product_attention(q_BHME, k_BHNE, v_BHNE, **options)


def attend(q_BMHE: Tensor, k_BNHE: Tensor, v_BNHE: Tensor, *, kernel: Kernel = "flash", dropout: float = 0.0) -> Tensor:
    """Attention of every query to all keys of its sequence, by torch: (B, M, H, E)."""
    queries, keys, values = (x.transpose(1, 2) for x in (q_BMHE, k_BNHE, v_BNHE))
    return attend_by_torch(queries, keys, values, kernel=kernel, dropout_p=dropout).transpose(1, 2)


def kernel_for(qkv_BN3HE: Tensor, choice: Choice | None) -> Kernel:
    """The chosen kernel, if it was chosen for such sequences; else flash attention."""
    if choice is None or not qkv_BN3HE.is_cuda:
        return "flash"
    chosen_for = (choice.num_tokens, choice.dtype)
    return choice.kernel if (qkv_BN3HE.shape[1], qkv_BN3HE.dtype) == chosen_for else "flash"


def attend_in_one_tile(qkv_BN3HE: Tensor) -> Tensor:
    """Attention of all tokens to all tokens of their sequence: (B, N, H, E)."""
    mixed_THE = one_tile_attention(qkv_BN3HE.flatten(0, 1), None, longest=qkv_BN3HE.shape[1], causal=False)
    return mixed_THE.unflatten(0, qkv_BN3HE.shape[:2])
