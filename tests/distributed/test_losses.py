"""The losses on 1, 2 and 4 processes against the textbook on the whole batch, through a real model under DDP."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.losses import ContrastiveLoss
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.models.clip import CLIP, build_model
from clipx.types import Batch, Embeddings

TOLERANCE = 1e-10
TILE_SIZE = 5  # divides neither the batch of a rank nor the global batch
SIZE = 12
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL = ModelConfig(
    embed_dim=6,
    image=TimmImageConfig(name="vit_base_patch32_clip_224", image_size=16, patch_drop=0.5, options=VIT),
    text=TransformerTextConfig(width=16, layers=1, heads=2, context_length=9),
    init_logit_bias=-3.0,
)
IDS = {
    "plain": (None, None),
    "ids": (torch.tensor([0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11]), None),
    "positives": (None, torch.tensor([0, 1, 2, 3, 1, 5, 5, 7, 8, 5, 1, 11])),
    "both": (
        torch.tensor([0, 1, 2, 0, 4, 5, 0, 7, 8, 8, 10, 11]),
        torch.tensor([0, 1, 2, 0, 1, 5, 5, 7, 8, 3, 1, 11]),
    ),
    "two": (torch.tensor([[0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0], [0, 1, 1, 3, 3, 5, 6, 0, 8, 5, 1, 11]]).T, None),
    "texts of images": (
        torch.tensor([[[0, 1], [0, 0]], [[0, 1], [1, 1]], [[1, 7], [1, 1]], [[1, 7], [7, 7]]] * 3),
        torch.arange(12) // 2,
    ),
}


def _model() -> CLIP:
    return build_model(MODEL, vocab_size=20, seed=0).double()


def _loss(name: str, tile_size: int = TILE_SIZE, exchange: Literal["gather", "ring"] = "gather") -> ContrastiveLoss:
    kind = InfoNCELoss if name == "info_nce" else SigmoidLoss
    return kind(tile_size=tile_size, exchange=exchange)


def _textbook(name: str, embeddings: Embeddings, ids_G: Tensor | None, positive_ids_G: Tensor | None) -> Tensor:
    inputs = (embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale)
    if name == "info_nce":
        return info_nce(*inputs, ids_G=ids_G, positive_ids_G=positive_ids_G)
    assert embeddings.logit_bias is not None
    return sigmoid(*inputs, embeddings.logit_bias, ids_G=ids_G, positive_ids_G=positive_ids_G)


def _batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    lengths_B = torch.randint(2, 10, (SIZE,), generator=generator)
    return Batch(
        index=3,
        images_IHWC=torch.randint(0, 256, (SIZE, 16, 16, 3), generator=generator, dtype=torch.uint8),
        tokens_T=torch.randint(0, 20, (int(lengths_B.sum()),), generator=generator),
        lengths_B=lengths_B,
        max_length=9,
        sample_id_I=torch.arange(SIZE),
        slot_I=torch.arange(SIZE),
        source_I=torch.zeros(SIZE, dtype=torch.int64),
    )


def _leaves(embeddings: Embeddings) -> list[Tensor]:
    assert embeddings.logit_bias is not None
    leaves = [embeddings.image_BD, embeddings.text_BD, embeddings.logit_scale, embeddings.logit_bias]
    for leaf in leaves:
        leaf.retain_grad()
    return leaves


def step_under_ddp(loss_name: str, ids: str, exchange: Literal["gather", "ring"]) -> dict[str, object]:
    """One backward pass on this rank's part; the gradients of embeddings are those of W times the loss."""
    group, size, rank = dist.group.WORLD, dist.get_world_size(), dist.get_rank()
    model = DistributedDataParallel(_model())
    part = _batch().micro_batches(SIZE // size)[rank]
    here = slice(rank * len(part), (rank + 1) * len(part))
    ids_G, positive_ids_G = IDS[ids]
    embeddings = model(part, seed=0)
    leaves = _leaves(embeddings)
    share = _loss(loss_name, exchange=exchange)(
        embeddings,
        group=group,
        ids_B=None if ids_G is None else ids_G[here],
        positive_ids_B=None if positive_ids_G is None else positive_ids_G[here],
    )
    (size * share).backward()
    return {
        "share": share.detach(),
        "embeddings": [leaf.grad for leaf in leaves],
        "parameters": {name: parameter.grad for name, parameter in model.module.named_parameters()},
    }


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("loss_name", ["info_nce", "sigmoid"])
@pytest.mark.parametrize(
    ("ids", "exchange"), [(name, "gather") for name in IDS] + [("plain", "ring"), ("both", "ring"), ("two", "ring")]
)
def test_every_gradient_under_ddp_is_the_textbooks(
    world_size: int, loss_name: str, ids: str, exchange: Literal["gather", "ring"]
) -> None:
    results = run_ranks(step_under_ddp, world_size, loss_name, ids, exchange)

    model = _model()
    embeddings = model(_batch(), seed=0)
    leaves = _leaves(embeddings)
    expected = _textbook(loss_name, embeddings, *IDS[ids])
    expected.backward()

    close = {"rtol": TOLERANCE, "atol": TOLERANCE}
    torch.testing.assert_close(sum(result["share"] for result in results), expected.detach(), **close)
    for place, leaf in enumerate(leaves[:2]):
        gathered = torch.cat([result["embeddings"][place] for result in results]) / world_size
        torch.testing.assert_close(gathered, leaf.grad, **close)
    for result in results:
        for name, parameter in model.named_parameters():
            if parameter.grad is None:  # the textbook InfoNCE does not know the bias
                assert name == "logit_bias"
                assert result["parameters"][name] == 0
            else:
                torch.testing.assert_close(result["parameters"][name], parameter.grad, **close, msg=name)
    assert model.log_logit_scale.grad.abs() > 1e-6  # an unused temperature would compare equal


WIDTHS = (48, 512, 640)
BATCH = 7  # of a rank; odd
CASES = [
    (width, name, exchange) for width in WIDTHS for name in ("info_nce", "sigmoid") for exchange in ("gather", "ring")
]


def _float64_embeddings(size: int, width: int) -> Embeddings:
    """Pairs like those of a model in training: texts near their images, a large multiplier."""
    generator = torch.Generator().manual_seed(width)
    image_GD, noise_GD = torch.randn(2, size, width, generator=generator, dtype=torch.float64)
    scale, bias = (torch.full((1,), value, dtype=torch.float64, requires_grad=True) for value in (40.0, -10.0))
    return Embeddings(
        image_BD=torch.nn.functional.normalize(image_GD, dim=1).requires_grad_(),
        text_BD=torch.nn.functional.normalize(image_GD + noise_GD, dim=1).requires_grad_(),
        logit_scale=scale,
        logit_bias=bias,
    )


def all_widths() -> list[list[Tensor]]:
    """Of every case this rank's share and its gradients for images, texts, scale and bias."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = []
    for width, name, exchange in CASES:
        whole = _float64_embeddings(BATCH * world_size, width)
        parts = [x.detach().chunk(world_size)[rank].requires_grad_() for x in (whole.image_BD, whole.text_BD)]
        embeddings = replace(whole, image_BD=parts[0], text_BD=parts[1])
        share = _loss(name, exchange=exchange)(embeddings, group=dist.group.WORLD)
        results.append([share.detach(), *torch.autograd.grad(share, [*parts, whole.logit_scale, whole.logit_bias])])
    return results


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_width_and_exchange_gives_the_textbooks_gradients(world_size: int) -> None:
    for (width, name, exchange), ranks in zip(CASES, zip(*run_ranks(all_widths, world_size), strict=True), strict=True):
        shares, images, texts, scales, biases = zip(*ranks, strict=True)
        whole = _float64_embeddings(BATCH * world_size, width)
        leaves = _leaves(whole)
        expected = _textbook(name, whole, None, None)
        expected.backward()
        found = [sum(shares), torch.cat(images), torch.cat(texts), sum(scales), sum(biases)]
        wanted = [expected.detach(), *(torch.zeros(1) if leaf.grad is None else leaf.grad for leaf in leaves)]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other.double(), rtol=0, atol=1e-10, msg=f"{width} {name} {exchange}")


def compiled_step() -> list[Tensor]:
    """A compiled caller's gradients beside the plain one's."""
    group = dist.group.WORLD
    losses = [_loss(name, exchange=exchange) for _, name, exchange in CASES[:4]]
    pairs = _random_embeddings(dist.get_rank(), 5, 6)

    def step(image_BD: Tensor, text_BD: Tensor) -> Tensor:
        embeddings = Embeddings(
            image_BD=image_BD, text_BD=text_BD, logit_scale=pairs.logit_scale, logit_bias=pairs.logit_bias
        )
        return torch.stack([loss(embeddings, group=group, ids_B=torch.arange(5)) for loss in losses]).sum()

    inputs = (pairs.image_BD, pairs.text_BD)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    return [gradient for call in (step, compiled) for gradient in torch.autograd.grad(call(*inputs), inputs)]


def test_a_compiled_caller_goes_on_on_several_ranks() -> None:
    for image, text, compiled_image, compiled_text in run_ranks(compiled_step, 2):
        assert torch.equal(image, compiled_image)
        assert torch.equal(text, compiled_text)


def one_rank_without_kernels(exchange: Literal["gather", "ring"]) -> list[Tensor]:
    """Rank 0 has kernels, or what looks like them; on rank 1 they fail, and torch's tiles take over."""
    from clipx.losses import info_nce as module
    from clipx.losses import triton_ops

    if dist.get_rank() == 0:
        module.use_kernels = lambda *_, **__: True  # type: ignore[assignment]
        triton_ops.info_nce_statistics = module._tile_statistics  # type: ignore[assignment]
        triton_ops.info_nce_gradient = module._tile_gradient  # type: ignore[assignment]
    whole = _float64_embeddings(2 * BATCH, 48)
    parts = [x.detach().chunk(2)[dist.get_rank()].requires_grad_() for x in (whole.image_BD, whole.text_BD)]
    loss = InfoNCELoss(tile_size=3, exchange=exchange)
    pairs = replace(whole, image_BD=parts[0], text_BD=parts[1])
    share = loss(pairs, group=dist.group.WORLD, ids_B=IDS["ids"][0][:BATCH])
    return [share.detach(), *torch.autograd.grad(share, parts)]


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_ranks_with_and_without_kernels_agree(exchange: Literal["gather", "ring"]) -> None:
    shares, images, texts = zip(*run_ranks(one_rank_without_kernels, 2, exchange), strict=True)
    whole = _float64_embeddings(2 * BATCH, 48)
    expected = _textbook("info_nce", whole, IDS["ids"][0][:BATCH].repeat(2), None)
    wanted = torch.autograd.grad(expected, (whole.image_BD, whole.text_BD))
    torch.testing.assert_close(sum(shares), expected.detach(), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close((torch.cat(images), torch.cat(texts)), wanted, rtol=0, atol=TOLERANCE)


class LargestTensor(TorchDispatchMode):
    """Records, by dtype, the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor):
                largest = max(self.elements.get(tensor.dtype, 0), tensor.numel())
                self.elements[tensor.dtype] = largest
        return output


def largest_tensors(
    loss_name: str, tile_size: int, with_ids: bool, exchange: Literal["gather", "ring"]
) -> dict[torch.dtype, int]:
    """Element counts of the largest tensors that forward and backward make on this rank, by dtype."""
    b, d = 96, 5
    inputs = _random_embeddings(dist.get_rank(), b, d)
    ids_B = torch.arange(b) // 2 if with_ids else None
    with LargestTensor() as seen:
        loss = _loss(loss_name, tile_size, exchange)
        share = loss(inputs, group=dist.group.WORLD, ids_B=ids_B, positive_ids_B=ids_B)
        share.backward()
    return seen.elements


def _random_embeddings(seed: int, b: int, d: int) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    image_BD, text_BD = (
        torch.nn.functional.normalize(torch.randn(b, d, generator=generator), dim=1).bfloat16().requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.full((1,), value, requires_grad=True) for value in (10.0, -10.0))
    return Embeddings(image_BD=image_BD, text_BD=text_BD, logit_scale=scale, logit_bias=bias)


@pytest.mark.parametrize("loss_name", ["info_nce", "sigmoid"])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_nothing_is_larger_than_a_tile_or_the_inputs(
    loss_name: str, with_ids: bool, exchange: Literal["gather", "ring"]
) -> None:
    world_size, b, d, tile_size = 4, 96, 5, 16
    for elements in run_ranks(largest_tensors, world_size, loss_name, tile_size, with_ids, exchange):
        largest_text_slice = 2 * tile_size * d
        # Gathered in the towers' dtype, once, or never more than one rank's.
        assert elements[torch.bfloat16] == (world_size * b * d if exchange == "gather" else b * d)
        assert elements[torch.float32] <= max(tile_size**2, b * d, world_size * b, largest_text_slice)
        assert elements.get(torch.bool, 0) <= tile_size**2


def shares_of_group(members: list[int]) -> Tensor | None:
    """The share within a group that is not all ranks; none outside of it."""
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        return None
    return InfoNCELoss(tile_size=3)(_random_embeddings(dist.get_rank(), 7, 5), group=group).detach()


def test_the_group_is_the_callers_and_not_the_world() -> None:
    shares = run_ranks(shares_of_group, 3, [0, 2])
    assert shares[1] is None
    parts = [_random_embeddings(seed, 7, 5) for seed in (0, 2)]
    image_GD, text_GD = (
        torch.cat([getattr(part, name) for part in parts]).detach() for name in ("image_BD", "text_BD")
    )
    expected = info_nce(image_GD, text_GD, parts[0].logit_scale.detach())
    torch.testing.assert_close((shares[0] + shares[2]).double(), expected, rtol=1e-5, atol=0)
