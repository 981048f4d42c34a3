"""What losses say that they take on every rank."""

from dataclasses import replace

import pytest

from clipx.losses.cost import NO_COST, LossShape
from clipx.losses.distill import DistillLoss, Teacher
from clipx.losses.info_nce import InfoNCELoss
from clipx.losses.sigmoid import SigmoidLoss

SHAPE = LossShape(rank_batch_size=100, world_size=4, embed_dim=16, element_bytes=2)


def test_memory_is_embeddings_and_tiles_and_never_the_whole_matrix() -> None:
    for implementation, dtype_bytes, tile_bytes in (
        ("auto", 2, 2),
        ("tiled", 2, 18),
        ("auto", 4, 18),
        ("triton", 4, 4),
    ):
        shape = replace(SHAPE, world_size=1, element_bytes=dtype_bytes)
        alone = InfoNCELoss(implementation=implementation).cost(shape)  # type: ignore[arg-type]
        assert alone.gathered_bytes == 4 * 100 * 16
        assert alone.working_bytes == 4 * 8 * 100 * 16 + tile_bytes * 100 * 100
    # beyond the largest tile it grows with B D + G D, and not with B G
    one, eight = (
        InfoNCELoss().cost(LossShape(rank_batch_size=8192, world_size=size, embed_dim=768, element_bytes=2))
        for size in (1, 8)
    )
    assert eight.working_bytes == one.working_bytes
    assert eight.gathered_bytes == 8 * one.gathered_bytes == 4 * 8 * 8192 * 768


def test_a_ring_holds_no_texts_of_all_ranks() -> None:
    gathered, ring = InfoNCELoss().cost(SHAPE), InfoNCELoss(exchange="ring").cost(SHAPE)
    assert (gathered.gathered_bytes, ring.gathered_bytes) == (4 * 400 * 16, 0)
    assert ring.working_bytes - gathered.working_bytes == 4 * 2 * 100 * 16
    moved = {transfer.part: transfer.times for transfer in ring.transfers if transfer.collective == "shift"}
    assert moved == {"texts": 2 * 3, "gradients of texts": 4}


@pytest.mark.parametrize(("loss", "products", "column_sums"), [(InfoNCELoss(), 4, 2), (SigmoidLoss(), 3, 0)])
def test_arithmetic_and_collectives_are_those_of_the_docstrings(
    loss: InfoNCELoss | SigmoidLoss, products: int, column_sums: int
) -> None:
    cost = loss.cost(SHAPE)
    assert cost.flops == 2 * products * 100 * 400 * 16
    moved = {transfer.part: (transfer.collective, transfer.payload, transfer.times) for transfer in cost.transfers}
    assert moved.pop("ids of samples") == ("all-gather", 8 * 400, 1)
    assert moved.pop("texts") == ("all-gather", 2 * 400 * 16, 1)
    assert moved.pop("gradients of texts") == ("reduce-scatter", 4 * 400 * 16, 1)
    assert moved == ({"sums of columns": ("all-reduce", 4 * 400, column_sums)} if column_sums else {})


def test_several_captions_gather_a_second_list_of_ids() -> None:
    cost = SigmoidLoss().cost(replace(SHAPE, captions_per_image=2))
    assert [transfer.times for transfer in cost.transfers if transfer.part == "ids of samples"] == [2]


def test_teachers_cost_two_products_each_and_their_texts_travel_once_more() -> None:
    teachers = [Teacher(width=8, logit_scale=1.0), Teacher(width=24, logit_scale=1.0)]
    gathered, ring = (DistillLoss(teachers, exchange=exchange).cost(SHAPE) for exchange in ("gather", "ring"))
    assert gathered.flops == ring.flops == 2 * 100 * 400 * (4 * 16 + 2 * 32)
    assert (gathered.gathered_bytes, ring.gathered_bytes) == (4 * 400 * 16 + 2 * 400 * 32, 0)
    moved = {one.part: (one.collective, one.payload, one.times) for one in gathered.transfers}
    assert moved == {
        "texts, to distill": ("all-gather", 2 * 400 * 16, 1),
        "gradients of texts, to distill": ("reduce-scatter", 4 * 400 * 16, 1),
        "teachers' texts": ("all-gather", 2 * 400 * 32, 1),
        "maxima of similarities": ("all-reduce", 4 * 400 * 3, 1),
        "sums of similarities": ("all-reduce", 4 * 400 * 5, 1),
    }
    shifted = {one.part: one.times for one in ring.transfers if one.collective == "shift"}
    assert shifted == {"texts, to distill": 6, "gradients of texts, to distill": 4, "teachers' texts": 6}


def test_costs_of_several_losses_add_up() -> None:
    one, other = InfoNCELoss().cost(SHAPE), SigmoidLoss().cost(SHAPE)
    both = NO_COST + one + other
    assert both.flops == one.flops + other.flops
    assert both.working_bytes == one.working_bytes + other.working_bytes
    assert both.transfers == one.transfers + other.transfers
