"""Fusions, table tower and losses: no sample depends on another, and nothing on what an absent thing holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clipx.losses.supervised import binary_sum, cross_entropy_sum, huber_sum, num_present
from clipx.models.fusion import Late, build_fusion
from clipx.models.head import Head
from clipx.models.slot_dropout import SlotDropout, dropout_keys, number_sites
from clipx.models.table_tower import TableTower

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
KINDS = ("weighted_sum", "concat", "gated", "bilinear", "attention", "late")

every_kind = pytest.mark.parametrize("kind", KINDS)
seeds = st.integers(0, 2**32)
sizes = st.integers(1, 17)
modalities = st.integers(1, 3)


def build(kind: str, num_modalities: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "late":
            heads = [Head(8, hidden=[4], num_outputs=4, dropout=0.3) for _ in range(num_modalities)]
            fusion: nn.Module = Late(heads, [("class", slice(0, 2)), ("number", slice(2, 3)), ("labels", slice(3, 4))])
            nn.init.normal_(fusion.logits_TM)
        else:
            fusion = build_fusion(kind, num_modalities=num_modalities, dim=8, dropout=0.3)
    number_sites(fusion)
    return fusion.double()


def draw(size: int, num_modalities: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, presence and keys of samples."""
    generator = torch.Generator().manual_seed(seed)
    vectors_BMD = torch.randn(size, num_modalities, 8, generator=generator, dtype=torch.float64)
    presence_BM = torch.randint(0, 2, (size, num_modalities), generator=generator).float()
    return vectors_BMD, presence_BM, dropout_keys(seed, 0, torch.arange(size))


@every_kind
@settings(max_examples=15, deadline=None)
@given(seed=seeds, size=sizes, num_modalities=modalities, data=st.data())
def test_unchanged_by_the_order_of_the_rows(
    kind: str, seed: int, size: int, num_modalities: int, data: st.DataObject
) -> None:
    order_B = torch.tensor(data.draw(st.permutations(range(size))))
    fusion = build(kind, num_modalities, seed)
    vectors_BMD, presence_BM, keys_B = draw(size, num_modalities, seed)
    straight = fusion(vectors_BMD, presence_BM, keys_B=keys_B)
    permuted = fusion(vectors_BMD[order_B], presence_BM[order_B], keys_B=keys_B[order_B])
    torch.testing.assert_close(permuted, straight[order_B], **CLOSE)
    alone = [fusion(vectors_BMD[row], presence_BM[row], keys_B=keys_B[row]) for row in torch.arange(size).split(1)]
    torch.testing.assert_close(torch.cat(alone), straight, **CLOSE)


@every_kind
@settings(max_examples=15, deadline=None)
@given(seed=seeds, size=st.integers(2, 17), num_modalities=modalities)
def test_other_rows_and_their_presence_change_no_bit(kind: str, seed: int, size: int, num_modalities: int) -> None:
    fusion = build(kind, num_modalities, seed)
    vectors_BMD, presence_BM, keys_B = draw(size, num_modalities, seed)
    others_BMD, _, other_keys_B = draw(size, num_modalities, seed + 1)
    others_BMD[0], other_keys_B[0] = vectors_BMD[0], keys_B[0]
    others_BM = torch.cat([presence_BM[:1], 1 - presence_BM[1:]])
    before_D = fusion(vectors_BMD, presence_BM, keys_B=keys_B)[0]
    assert torch.equal(fusion(others_BMD, others_BM, keys_B=other_keys_B)[0], before_D)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, size=sizes, num_modalities=modalities)
def test_late_fusion_reads_nothing_that_is_absent(seed: int, size: int, num_modalities: int) -> None:
    fusion = build("late", num_modalities, seed)
    vectors_BMD, presence_BM, keys_B = draw(size, num_modalities, seed)
    presence_BM[:, 0] = torch.maximum(presence_BM[:, 0], (presence_BM.sum(1) == 0).float())
    other_BMD = torch.where(presence_BM[..., None] > 0, vectors_BMD, 100 * vectors_BMD.flip(2) + 7).requires_grad_()
    out_BO = fusion(other_BMD, presence_BM, keys_B=keys_B)
    assert torch.equal(out_BO, fusion(vectors_BMD, presence_BM, keys_B=keys_B))
    (gradient_BMD,) = torch.autograd.grad(out_BO.square().sum(), other_BMD)
    assert (gradient_BMD[presence_BM == 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=seeds, size=sizes, data=st.data())
def test_rows_of_a_table_stand_alone(seed: int, size: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = TableTower(3, category_sizes=[2, 4], dim=8).double()
    numbers_BK = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    numbers_BK[torch.rand(size, 3, generator=generator) < 0.3] = torch.nan
    categories_BC = torch.randint(-1, 2, (size, 2), generator=generator)
    order_B = torch.tensor(data.draw(st.permutations(range(size))))
    straight_BD = tower(numbers_BK, categories_BC)
    torch.testing.assert_close(tower(numbers_BK[order_B], categories_BC[order_B]), straight_BD[order_B], **CLOSE)
    assert straight_BD.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(seed=seeds, batch_index=st.integers(0, 2**40), site=st.integers(0, 500), rate=st.floats(0, 0.99), data=st.data())
def test_slot_dropout_depends_on_key_and_site_alone(
    seed: int, batch_index: int, site: int, rate: float, data: st.DataObject
) -> None:
    slots = data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
    layer = SlotDropout(rate)
    layer.site = site
    keys_B = dropout_keys(seed, batch_index, torch.tensor(slots))
    whole_BN = layer(torch.ones(len(slots), 12), keys_B)
    for row, slot in enumerate(slots):
        alone = layer(torch.ones(1, 12), dropout_keys(seed, batch_index, torch.tensor([slot])))
        assert torch.equal(alone[0], whole_BN[row])
    narrow_BN = layer(torch.ones(len(slots), 5), keys_B)
    assert torch.equal(narrow_BN, whole_BN[:, :5])


@settings(max_examples=50, deadline=None)
@given(seed=seeds, size=st.integers(1, 40), data=st.data())
def test_losses_are_sums_over_the_present_cells(seed: int, size: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_BK = 3 * torch.randn(size, 4, generator=generator, dtype=torch.float64)
    target_B = torch.randint(0, 4, (size,), generator=generator).double()
    labels_BK = torch.randint(0, 2, (size, 4), generator=generator).double()
    absent_B = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    order_B = torch.tensor(data.draw(st.permutations(range(size))))
    for loss, x, target in (
        (cross_entropy_sum, logits_BK, target_B),
        (binary_sum, logits_BK, labels_BK),
        (huber_sum, logits_BK[:, 0], target_B),
    ):
        masked = target.clone()
        masked[absent_B] = torch.nan
        value = loss(x, masked)
        torch.testing.assert_close(value, loss(x[~absent_B], target[~absent_B]), **CLOSE)
        torch.testing.assert_close(value, loss(x[order_B], masked[order_B]), **CLOSE)
        assert num_present(masked) == (~absent_B).sum() * masked[0].numel()
