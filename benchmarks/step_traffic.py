"""A step of clipx and of open_clip at full size, counted on fake tensors; `budget.py` gives it times."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from traffic import Traffic

from clipx.config.phases import phase_at
from clipx.config.schema import RunConfig
from clipx.distributed.block_transforms import checkpoint_blocks
from clipx.models import half_weights, packing, vit
from clipx.models.attention.one_tile import MAX_TOKENS
from clipx.models.dry_run import dry_run
from clipx.plan.model import PhaseModel

OPEN_CLIP = {"b32": "ViT-B-32", "b16": "ViT-B-16", "l14": "ViT-L-14"}
CAPTION_TOKENS = 16


@dataclass(frozen=True)
class Counted:
    """One side's step, counted."""

    traffic: Traffic
    num_weights: int
    pixel_bytes: float
    """That cross from host to device while it waits."""


def count_clipx(config: RunConfig, batch_size: int, *, before: bool = False) -> Counted:
    """Counts the towers of clipx over texts of mean length.

    The copy of the pixels that a dry run makes stands for the one from their buffer.

    Args:
        config: its model and activation checkpointing are counted.
        batch_size: pairs of one pass.
        before: whether as it was: flash attention alone, casts in each layer, pixels that the device waits for.
    """
    model = PhaseModel(config, phase_at(config, 0), caption_tokens=CAPTION_TOKENS)
    objective, image = model.objective, config.model.image
    objective.use_few_shapes(True)  # else it reads lengths, which fake tensors do not have; adds tokens, 6% at most
    for blocks in objective.block_lists():
        checkpoint_blocks(blocks, fraction=config.activation_checkpointing)
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    run = dry_run(
        lambda batch: objective.dry_run_roots(batch, autocast),
        image_size=image.image_size,
        context_length=CAPTION_TOKENS,
        device=torch.device("cpu"),
    )
    with _fake_weights(objective.model), ExitStack() as stack:
        if not before:
            stack.enter_context(_as_on_cuda())
            run = half_weights.HalfWeights(objective.model, dtype=torch.bfloat16).around(run)
        traffic = counted(lambda: run(batch_size))
    return Counted(traffic, model.num_parameters, batch_size * 3.0 * image.image_size**2 if before else 0.0)


@contextmanager
def _as_on_cuda() -> Iterator[None]:
    """What fake tensors of a CPU would take another way than those of CUDA, of which torch cannot make any here."""

    def kernel(qkv_BN3HE: torch.Tensor, choice: object) -> str:
        return "one_tile" if qkv_BN3HE.shape[1] <= MAX_TOKENS else "flash"

    def takes(qkv: torch.Tensor, dtype: object, *, longest: int) -> bool:
        return longest <= MAX_TOKENS

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.mm(a, b, out_dtype=torch.float32)

    with (
        patch.object(vit, "kernel_for", kernel),
        patch.object(packing, "_one_tile_takes", takes),
        patch.object(half_weights, "_float_product", product),
    ):
        yield


def count_open_clip(name: str, batch_size: int) -> Counted:
    """Counts open_clip's model over texts padded to its context length, with float32 pixels."""
    import open_clip

    with torch.device("meta"):
        model = open_clip.create_model(OPEN_CLIP[name], device="meta", output_dict=True).train()
    side, length = model.visual.image_size[0], model.context_length

    def step() -> None:
        texts = torch.zeros(batch_size, length, dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(torch.zeros(batch_size, 3, side, side), texts)
        roots = [outputs["image_features"], outputs["text_features"]]
        torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])

    with _fake_weights(model):
        traffic = counted(step)
    num_weights = sum(weight.numel() for weight in model.parameters())
    return Counted(traffic, num_weights, batch_size * 3 * 4.0 * side**2)


def count_clip_loss(size: int, width: int) -> Traffic:
    """Counts open_clip's loss of one process, forward and backward, under autocast as in its training."""
    from open_clip.loss import ClipLoss

    def step() -> None:
        image, text = (torch.zeros(size, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ClipLoss()(image, text, torch.ones((), requires_grad=True))
        loss.backward()

    with FakeTensorMode():
        return counted(step)


def counted(step: Callable[[], None]) -> Traffic:
    """What a step takes."""
    with Traffic() as traffic:
        step()
        traffic.finish()
    return traffic


@contextmanager
def _fake_weights(model: torch.nn.Module) -> Iterator[None]:
    """Weights and gradients without values, in a context in which all tensors have none."""
    with FakeTensorMode():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        yield
