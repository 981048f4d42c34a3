"""The gradient cache on 1, 2 and 4 processes against the textbook on the whole batch, in float64, with dropout."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from reference.info_nce import info_nce
from reference.sigmoid import sigmoid
from tiny import tiny_config
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from clipx.config.model import ModelConfig, TimmImageConfig, TransformerTextConfig
from clipx.distributed.parallelize import full_tensor, no_sync, parallelize
from clipx.distributed.runtime import start_runtime
from clipx.losses import ContrastiveLoss
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss
from clipx.models.clip import CLIP, build_model
from clipx.train.accumulate import Losses, accumulate
from clipx.types import Batch, Embeddings

TOLERANCE = 1e-10
MICRO_BATCH_SIZE = 3
LOSSES = ("info_nce", "sigmoid")
DIMS = (48, 512, 640)
PIECES = (1, 2, 5)  # k; the batch of a rank has 3, 6 or 15 pairs


def build(embed_dim: int) -> CLIP:
    """Ordinary dropout in the image tower; patch dropout is asked for in the forward pass."""
    options = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "proj_drop_rate": 0.2}
    config = ModelConfig(
        embed_dim=embed_dim,
        image=TimmImageConfig(name="vit_base_patch32_clip_224", image_size=16, patch_drop=0.5, options=options),
        text=TransformerTextConfig(width=16, layers=1, heads=2, context_length=9),
        init_logit_bias=-3.0,
    )
    return build_model(config, vocab_size=20, seed=0).double()


def global_batch(size: int) -> Batch:
    generator = torch.Generator().manual_seed(size)
    lengths_B = torch.randint(2, 10, (size,), generator=generator)
    return Batch(
        index=3,
        images_IHWC=torch.randint(0, 256, (size, 16, 16, 3), generator=generator, dtype=torch.uint8),
        tokens_T=torch.randint(0, 20, (int(lengths_B.sum()),), generator=generator),
        lengths_B=lengths_B,
        max_length=9,
        sample_id_I=torch.arange(size),
        slot_I=torch.arange(size),
        source_I=torch.zeros(size, dtype=torch.int64),
    )


def forward(model: torch.nn.Module, piece: Batch, number: int, *, rank: int, for_terms: bool = False) -> Embeddings:
    torch.manual_seed(100 * rank + number)
    embeddings: Embeddings = model(piece, seed=7, patch_drop=0.5)
    return embeddings


def textbook(loss_name: str, embed_dim: int, num_pieces: int, world_size: int) -> tuple[float, dict[str, Tensor]]:
    """The loss of the whole batch, and every parameter's gradient, from one graph."""
    model = build(embed_dim)
    pieces = global_batch(MICRO_BATCH_SIZE * num_pieces * world_size).micro_batches(MICRO_BATCH_SIZE)
    parts = [
        forward(model, piece, number % num_pieces, rank=number // num_pieces) for number, piece in enumerate(pieces)
    ]
    image_GD, text_GD = (torch.cat([getattr(part, name) for part in parts]) for name in ("image_BD", "text_BD"))
    scale, bias = parts[0].logit_scale, parts[0].logit_bias
    assert bias is not None
    loss = info_nce(image_GD, text_GD, scale) if loss_name == "info_nce" else sigmoid(image_GD, text_GD, scale, bias)
    loss.backward()
    return loss.item(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def cached(kind: str, folder: Path, loss_name: str, embed_dim: int, num_pieces: int) -> tuple[float, dict[str, Tensor]]:
    """The same from the step's parts: this rank's share, and the gradients after synchronisation."""
    with torch_group(), start_runtime(tiny_config(folder, "none.tar", f"parallel.type={kind}")) as runtime:
        towers = build(embed_dim)
        blocks = [block for blocks in towers.block_lists() for block in blocks]
        model, _ = parallelize(runtime, towers, torch.optim.SGD(towers.parameters(), lr=1.0), blocks=blocks)
        rank, world_size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
        pieces = global_batch(MICRO_BATCH_SIZE * num_pieces * world_size).micro_batches(MICRO_BATCH_SIZE)
        own = pieces[rank * num_pieces : (rank + 1) * num_pieces]
        criterion: ContrastiveLoss = InfoNCELoss(tile_size=4) if loss_name == "info_nce" else SigmoidLoss(tile_size=4)
        shares: list[Tensor] = []

        def loss(embeddings: Embeddings) -> Tensor:
            shares.append(criterion(embeddings, group=group))
            return shares[-1]

        accumulate(
            own,
            forward=partial(forward, model, rank=rank),
            losses=Losses(coupled=loss, terms=None),
            scale=lambda share: world_size * share,
            no_sync=partial(no_sync, model),
        )
        assert isinstance(model, DistributedDataParallel) == (kind == "ddp")
        gradients = {name: full_tensor(parameter.grad) for name, parameter in towers.named_parameters()}
    return shares[0].item(), gradients


@contextmanager
def torch_group() -> Iterator[None]:
    """Keeps the group of the test over several runtimes, each of which would destroy it."""
    original, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    try:
        yield
    finally:
        dist.destroy_process_group = original


def errors(kind: str, folder: Path, dims: tuple[int, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """For every case: this rank's share minus the textbook's loss over W, and the largest error of a gradient."""
    torch.use_deterministic_algorithms(True)
    shares, worst = {}, {}
    for loss_name, embed_dim, num_pieces in product(LOSSES, dims, PIECES):
        expected_loss, expected = textbook(loss_name, embed_dim, num_pieces, dist.get_world_size())
        share, gradients = cached(kind, folder, loss_name, embed_dim, num_pieces)
        assert gradients.keys() == expected.keys()
        assert expected["log_logit_scale"].abs() > 1e-6  # an unused temperature would compare equal
        case = f"{loss_name} d={embed_dim} k={num_pieces}"
        shares[case] = share - expected_loss / dist.get_world_size()
        differences = {name: (gradients[name] - expected[name]).abs().max().item() for name in expected}
        worst[case] = max(differences.values())
    return shares, worst


@pytest.mark.parametrize(
    ("kind", "world_size", "dims"),
    [
        *[("ddp", 2, DIMS), ("fsdp2", 2, DIMS[:1])],
        *[pytest.param("ddp", world_size, DIMS, marks=pytest.mark.full) for world_size in (1, 4)],
        *[pytest.param("fsdp2", world_size, DIMS, marks=pytest.mark.full) for world_size in (1, 2, 4)],
    ],
)
def test_loss_and_every_gradient_are_the_textbooks(
    kind: str, world_size: int, dims: tuple[int, ...], tmp_path: Path
) -> None:
    results = run_ranks(errors, world_size, kind, tmp_path, dims)
    assert len(results[0][1]) == len(LOSSES) * len(dims) * len(PIECES)
    for case in results[0][0]:
        assert abs(sum(shares[case] for shares, _ in results)) < TOLERANCE, case
        for _, worst in results:
            assert worst[case] < TOLERANCE, case
