"""Every fusion and late fusion against the textbook, and what the trainer and exports ask of them."""

import copy

import pytest
import torch
from reference import supervised as textbook
from torch import Tensor, nn

from clipx.models.fusion import Late, build_fusion
from clipx.models.head import Head
from clipx.models.slot_dropout import dropout_keys, number_sites

KINDS = ("weighted_sum", "concat", "gated", "bilinear", "attention", "late")
LAYOUT = [("class", slice(0, 3)), ("number", slice(3, 4)), ("labels", slice(4, 6))]
PRESENCE = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]

every_kind = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, *, modalities: int, dim: int, dropout: float = 0.5) -> nn.Module:
    """A fusion in float64 whose parameters are all drawn, those that begin with 0 or 1 included."""
    if kind == "late":
        heads = [Head(dim, hidden=[5], num_outputs=6, dropout=dropout) for _ in range(modalities)]
        fusion: nn.Module = Late(heads, LAYOUT)
    else:
        fusion = build_fusion(kind, num_modalities=modalities, dim=dim, dropout=dropout)
    number_sites(fusion)
    generator = torch.Generator().manual_seed(7)
    for parameter in fusion.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    return fusion


def draw(modalities: int, dim: int) -> tuple[Tensor, Tensor]:
    vectors_BMD = torch.randn(4, modalities, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vectors_BMD, torch.tensor(PRESENCE, dtype=torch.float32)[:, :modalities]


def value_and_gradients(
    fusion: nn.Module, vectors_BMD: Tensor, presence_BM: Tensor, keys_B: Tensor | None, *, by_textbook: bool
) -> list[Tensor]:
    """Outputs, and gradients of a weighted sum of them for vectors and all parameters."""
    vectors_BMD = vectors_BMD.clone().requires_grad_()
    if by_textbook:
        forward = textbook.late if isinstance(fusion, Late) else textbook.fuse
        out = forward(fusion, vectors_BMD, presence_BM, keys_B)
    else:
        out = fusion(vectors_BMD, presence_BM, keys_B=keys_B)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    inputs = [vectors_BMD, *fusion.parameters()]
    return [out.detach(), *torch.autograd.grad((weights * out).sum(), inputs, materialize_grads=True)]


@every_kind
@pytest.mark.parametrize(("modalities", "dim"), [(1, 5), (2, 4), (3, 6)])
@pytest.mark.parametrize("drops", [False, True])
def test_value_and_gradients_are_the_textbooks(kind: str, modalities: int, dim: int, drops: bool) -> None:
    fusion = build(kind, modalities=modalities, dim=dim)
    vectors_BMD, presence_BM = draw(modalities, dim)
    keys_B = dropout_keys(3, 4, torch.arange(4)) if drops else None
    wanted = value_and_gradients(fusion, vectors_BMD, presence_BM, keys_B, by_textbook=True)
    found = value_and_gradients(fusion, vectors_BMD, presence_BM, keys_B, by_textbook=False)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    narrow = copy.deepcopy(fusion).float()
    found = value_and_gradients(narrow, vectors_BMD.float(), presence_BM, keys_B, by_textbook=False)
    for part, exact in zip(found, wanted, strict=True):
        assert part.dtype == torch.float32
        assert (part - exact).abs().max() <= 1e-5 * exact.abs().max().clamp(min=1)


@every_kind
def test_gradients_are_finite_differences(kind: str) -> None:
    fusion = build(kind, modalities=2, dim=4)
    vectors_BMD, presence_BM = draw(2, 4)
    keys_B = dropout_keys(0, 0, torch.arange(4))
    assert torch.autograd.gradcheck(lambda x: fusion(x, presence_BM, keys_B=keys_B), vectors_BMD.requires_grad_())


@every_kind
@pytest.mark.parametrize("present", [0.0, 1.0])
def test_every_parameter_can_be_sharded_and_has_a_gradient_in_every_step(kind: str, present: float) -> None:
    fusion = build(kind, modalities=2, dim=8).float()
    vectors_BMD = torch.randn(3, 2, 8)
    fusion(vectors_BMD, torch.full((3, 2), present)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.dim() > 0, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@every_kind
def test_compiles_without_a_break_and_needs_no_value_on_the_host(kind: str) -> None:
    fusion = build(kind, modalities=2, dim=8).float()
    vectors_BMD, presence_BM = draw(2, 8)
    keys_B = dropout_keys(0, 0, torch.arange(4))
    compiled = torch.compile(fusion, backend="eager", fullgraph=True)
    expected = fusion(vectors_BMD.float(), presence_BM, keys_B=keys_B)
    torch.testing.assert_close(compiled(vectors_BMD.float(), presence_BM, keys_B=keys_B), expected)
    on_meta = fusion.to("meta")(vectors_BMD.float().to("meta"), presence_BM.to("meta"), keys_B=keys_B.to("meta"))
    assert on_meta.shape == expected.shape


@every_kind
def test_exports_for_any_number_of_rows(kind: str) -> None:
    fusion = build(kind, modalities=2, dim=8).eval()
    vectors_BMD, presence_BM = draw(2, 8)
    rows = {0: torch.export.Dim("rows", min=1, max=1000)}
    exported = torch.export.export(fusion, (vectors_BMD, presence_BM), dynamic_shapes=(rows, rows), strict=False)
    for count in (1, 3):
        wanted = fusion(vectors_BMD[:count], presence_BM[:count])
        torch.testing.assert_close(exported.module()(vectors_BMD[:count], presence_BM[:count]), wanted)


@every_kind
def test_sums_and_softmax_are_in_float32_under_autocast(kind: str) -> None:
    fusion = build(kind, modalities=2, dim=8).float()
    vectors_BMD, presence_BM = draw(2, 8)
    exact = fusion(vectors_BMD.float(), presence_BM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fusion(vectors_BMD.float(), presence_BM)
    assert found.dtype == (torch.bfloat16 if kind in ("concat", "gated") else torch.float32)
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert (found - exact).abs().max() > 0 or kind == "weighted_sum"


def test_products_are_in_float32_under_autocast() -> None:
    fusion = build("bilinear", modalities=2, dim=8).float()
    vectors_BMD = draw(2, 8)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = fusion(vectors_BMD, torch.ones(4, 2))
        first_BN, second_BN = (linear(vectors_BMD[:, index]).float() for index, linear in enumerate(fusion.factors))
    wanted = (first_BN * second_BN).unflatten(1, (fusion.rank, 8)).sum(1) + fusion.bias_D
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "late"])
def test_what_it_gives_has_about_the_variance_1_at_first(kind: str) -> None:
    torch.manual_seed(0)
    for modalities in (1, 2, 3):
        fusion = build_fusion(kind, num_modalities=modalities, dim=64, dropout=0.1)
        out_BD = fusion(torch.randn(200, modalities, 64), torch.ones(200, modalities))
        assert 0.08 < out_BD.var() < 2
        assert out_BD.mean().abs() < 0.3


def test_late_fusion_of_one_present_modality_is_its_own_prediction() -> None:
    fusion = build("late", modalities=2, dim=4)
    vectors_BMD, _ = draw(2, 4)
    raw_BO = fusion.heads[1](vectors_BMD[:, 1])
    out_BO = fusion(vectors_BMD, torch.tensor([[0.0, 1.0]]).expand(4, 2))
    torch.testing.assert_close(out_BO[:, :3].softmax(1), raw_BO[:, :3].softmax(1))
    torch.testing.assert_close(out_BO[:, 3:], raw_BO[:, 3:])


@every_kind
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.full), pytest.param(2, marks=pytest.mark.full)])
def test_only_what_multiplies_or_mixes_learns_xor_with_a_linear_head(kind: str, seed: int) -> None:
    accuracy = xor_accuracy(kind, seed)
    if kind in ("weighted_sum", "concat", "late"):
        assert accuracy <= 0.76  # a sum of a score per bit gets at most 3 of the 4 cells
    else:
        assert accuracy > 0.95


def xor_accuracy(kind: str, seed: int) -> float:
    """Accuracy on new samples of y = b_1 XOR b_2, where b_m is the sign of one direction of modality m's vector."""
    dim, generator = 32, torch.Generator().manual_seed(seed)
    directions_MD = nn.functional.normalize(torch.randn(2, dim, generator=generator), dim=1)
    vectors_BMD = torch.randn(3000, 2, dim, generator=generator)
    scores_BM = torch.einsum("bmd,md->bm", vectors_BMD, directions_MD)
    vectors_BMD += (scores_BM.sign() * 2 - scores_BM)[..., None] * directions_MD
    labels_B = (scores_BM > 0).sum(1) % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"head": Head(dim, hidden=[], num_outputs=2, dropout=0.1)})
        if kind == "late":
            heads = [Head(dim, hidden=[], num_outputs=2, dropout=0.1) for _ in range(2)]
            model["fusion"] = Late(heads, [("class", slice(0, 2))])
            model["head"] = nn.Identity()
        else:
            model["fusion"] = build_fusion(kind, num_modalities=2, dim=dim, dropout=0.1)
    number_sites(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    presence_BM = torch.ones(3000, 2)
    for step in range(150):
        rows_B = torch.randint(0, 2000, (128,), generator=generator)
        keys_B = dropout_keys(seed, step, torch.arange(128))
        logits_BK = model["head"](model["fusion"](vectors_BMD[rows_B], presence_BM[:128], keys_B=keys_B))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits_BK, labels_B[rows_B]).backward()
        optimizer.step()
    with torch.no_grad():
        logits_BK = model["head"](model["fusion"](vectors_BMD[2000:], presence_BM[2000:]))
    return float((logits_BK.argmax(1) == labels_B[2000:]).float().mean())
