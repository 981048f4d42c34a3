"""Muon beside its textbook in float64, what it is for, steps that must change nothing, and bad input."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from reference.muon import muon
from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import BertConfig, BertModel

from clipx.config.load import load_config
from clipx.config.optim import AdamWConfig, MuonConfig, TowerOptimConfig
from clipx.errors import InputError
from clipx.models.clip import CLIP, build_model
from clipx.optim.muon import Muon, build_muon, muon_work, update_scale
from clipx.optim.newton_schulz import newton_schulz_flops, polynomials
from clipx.optim.optimizers import build_optimizer, set_learning_rate
from clipx.optim.param_groups import block_matrices
from clipx.optim.shared_matrices import owners

SHAPES = {(6, 6): 1, (12, 6): 1, (6, 12): 1, (24, 8): 3, (64, 128): 1, (96, 32): 3}


def gradients(shape: tuple[int, ...], seed: int, steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(steps)]


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(gradients(shape, 100 + seed, 1)[0].to(dtype)) for seed, shape in enumerate(SHAPES)]


def optimizer_of(params: list[nn.Parameter], **settings: Any) -> Muon:
    groups = [
        {"params": [parameter], "parts": parts, "weight_decay": 0.1}
        for parameter, parts in zip(params, SHAPES.values(), strict=True)
    ]
    return Muon(groups, **{"lr": 0.03, "momentum": 0.9, **settings})


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("iterations", [3, 4])
def test_equals_the_textbook(dtype: torch.dtype, tolerance: float, iterations: int) -> None:
    params = weights(dtype)
    settings = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.1, "polynomials": polynomials(iterations)}
    wanted = [
        muon(parameter.detach(), [each.to(dtype) for each in gradients(shape, seed)], parts=parts, **settings)
        for seed, (parameter, (shape, parts)) in enumerate(zip(params, SHAPES.items(), strict=True))
    ]
    start = [parameter.detach().double().clone() for parameter in params]
    optimizer = optimizer_of(params, iterations=iterations)
    for step in range(4):
        for seed, (parameter, shape) in enumerate(zip(params, SHAPES, strict=True)):
            parameter.grad = gradients(shape, seed)[step].to(dtype)
        optimizer.step()
    for parameter, before, expected in zip(params, start, wanted, strict=True):
        moved = parameter.detach().double() - before
        assert (moved - (expected - before)).norm() <= tolerance * (expected - before).norm()


@pytest.mark.parametrize("bad_step", [0, 2])
def test_a_bad_step_leaves_everything_as_it_was_and_the_next_goes_on(bad_step: int) -> None:
    disturbed, calm = weights(torch.float32), weights(torch.float32)
    table, other_table = nn.Parameter(torch.ones(5, 4)), nn.Parameter(torch.ones(5, 4))
    one, other = optimizer_of(disturbed), optimizer_of(calm)
    one.add_param_group({"params": [table]})
    other.add_param_group({"params": [other_table]})
    for number in range(4):
        if number == bad_step:
            before = [parameter.detach().clone() for parameter in (*disturbed, table)]
            states = {p: {k: v.clone() for k, v in state.items()} for p, state in one.state.items()}
            for parameter in (*disturbed, table):
                parameter.grad = torch.full_like(parameter, torch.nan)
            one.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
            one.step()
            assert all(map(torch.equal, before, (*disturbed, table)))
            assert all(torch.equal(one.state[p][name], v) for p, state in states.items() for name, v in state.items())
        one.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
        for mine, theirs, shape in zip(disturbed, calm, SHAPES, strict=True):
            mine.grad, theirs.grad = (gradients(shape, 5)[number].float() for _ in range(2))
        table.grad, other_table.grad = (gradients((5, 4), 6)[number].float() for _ in range(2))
        one.step()
        other.step()
    assert all(map(torch.equal, (*disturbed, table), (*calm, other_table)))
    assert not torch.equal(before[0], disturbed[0])


def test_gradients_are_divided_by_the_scale() -> None:
    scaled, plain = weights(torch.float32), weights(torch.float32)
    one, other = optimizer_of(scaled), optimizer_of(plain)
    one.grad_scale = torch.tensor(1024.0)  # type: ignore[attr-defined]
    for mine, theirs, shape in zip(scaled, plain, SHAPES, strict=True):
        theirs.grad = gradients(shape, 1)[0].float()
        mine.grad = 1024 * theirs.grad
    one.step()
    other.step()
    for mine, theirs in zip(scaled, plain, strict=True):
        assert torch.equal(one.state[mine]["momentum"], other.state[theirs]["momentum"])
        assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    """Two image blocks of width 32, three text blocks of width 20."""
    return build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)


def test_matrices_are_those_of_blocks_and_a_fused_projection_is_three(clip: CLIP) -> None:
    found = block_matrices(clip)
    per_block = {"attn.qkv.weight": 3, "attn.proj.weight": 1, "mlp.fc1.weight": 1, "mlp.fc2.weight": 1}
    image = {f"image_tower.trunk.blocks.{i}.{name}": parts for i in range(2) for name, parts in per_block.items()}
    text = {f"text_tower.blocks.{i}.{name}": parts for i in range(3) for name, parts in per_block.items()}
    assert found == {**image, **text}


class Towers(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.image_tower = nn.Sequential(*blocks)
        self.other = nn.Linear(3, 3)

    def block_lists(self) -> list[list[nn.Module]]:
        return [list(self.image_tower), []]


def test_matrices_of_other_layers() -> None:
    attention = nn.MultiheadAttention(8, 2)
    convolution, table = nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 1))
    assert block_matrices(Towers(attention, convolution, table)) == {
        "image_tower.0.in_proj_weight": 3,
        "image_tower.0.out_proj.weight": 1,
    }
    shape = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8, vocab_size=9)
    bert = BertModel(shape, add_pooling_layer=False)
    found = block_matrices(Towers(*bert.encoder.layer))
    assert found["image_tower.0.attention.self.query.weight"] == 1
    assert len(found) == 2 * 6


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "beit_base_patch16_224", "tiny_vit_5m_224"])
def test_tables_of_relative_positions_are_no_matrices(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    layers = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    model.block_lists = lambda: [[*model.children()]]
    found, weights = block_matrices(model), dict(model.named_parameters())
    assert len(found) > 20
    assert all(id(weights[name]) in layers for name in found)


def test_a_matrix_without_gradient_fades_and_stays_finite() -> None:
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([{"params": [weight], "parts": 1}], lr=1e-3)
    for step in range(1200):
        weight.grad = torch.randn(6, 4) if step == 0 else torch.zeros(6, 4)
        optimizer.step()
    assert weight.isfinite().all()


def test_groups_keep_their_rates_and_all_that_is_no_matrix_goes_to_adamw(clip: CLIP) -> None:
    config = MuonConfig(
        weight_decay=0.3,
        adamw_lr_scale=0.5,
        image=TowerOptimConfig(layer_decay=0.5),
        text=TowerOptimConfig(lr_scale=2.0),
    )
    optimizer = build_muon(config, clip, group=None)
    names = {parameter: name for name, parameter in clip.named_parameters()}
    rates: dict[str, tuple[float, float, int]] = {}
    set_learning_rate(optimizer, 0.1)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[parameter]] = (group["lr"], group["weight_decay"], group["parts"])
    assert rates.keys() == set(names.values())
    assert {name: parts for name, (_, _, parts) in rates.items() if parts} == block_matrices(clip)
    wanted = {
        "image_tower.trunk.blocks.1.attn.qkv.weight": (0.05, 0.3, 3),
        "image_tower.trunk.blocks.0.mlp.fc1.weight": (0.025, 0.3, 1),
        "image_tower.trunk.blocks.0.mlp.fc1.bias": (0.0125, 0.0, 0),
        "text_tower.blocks.2.attn.proj.weight": (0.2, 0.3, 1),
        "text_tower.token_embedding.weight": (0.1, 0.3, 0),
        "image_tower.projection.weight": (0.05, 0.3, 0),
        "log_logit_scale": (0.05, 0.0, 0),
    }
    for name, (lr, weight_decay, parts) in wanted.items():
        assert rates[name] == (pytest.approx(lr), weight_decay, parts), name


def test_without_matrices_it_is_adamw_to_the_bit() -> None:
    settings: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-5, "weight_decay": 0.1}
    mine, theirs = ([nn.Parameter(torch.ones(shape)) for shape in ((4, 3), (5,))] for _ in range(2))
    one = Muon([{"params": mine, "weight_decay": 0.1}], lr=0.02, betas=(0.8, 0.9), eps=1e-5)
    other = AdamW(theirs, fused=True, **settings)
    for step in range(5):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = gradients(tuple(a.shape), step, 1)[0].float()
            b.grad = a.grad.clone()
        one.step()
        other.step()
    assert all(map(torch.equal, mine, theirs))


def test_scales() -> None:
    assert update_scale(64, 16, scale="adamw") == pytest.approx(0.2 * 8)
    assert update_scale(16, 64, scale="adamw") == pytest.approx(0.2 * 8)
    assert update_scale(64, 16, scale="spectral") == pytest.approx(2)
    assert update_scale(16, 64, scale="spectral") == 1
    for shape in ((64, 64), (128, 64)):  # the update's root mean square is about AdamW's 0.2, whatever the shape
        (weight,) = params = [nn.Parameter(torch.zeros(shape))]
        weight.grad = gradients(shape, 0, 1)[0].float()
        Muon([{"params": params, "parts": 1}], lr=1.0, iterations=6).step()
        assert weight.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_work_is_balanced_by_flops_and_every_matrix_has_one_owner(clip: CLIP) -> None:
    assert owners((3.0, 1.0, 2.0, 2.0), 2) == (0, 0, 1, 1)
    assert owners((1.0, 1.0), 4) == (0, 1)
    alone, elements = muon_work(MuonConfig(), clip, num_ranks=1)
    image = 4 * newton_schulz_flops(32, 32, iterations=4) + 2 * newton_schulz_flops(32, 128, iterations=4)
    text = 4 * newton_schulz_flops(20, 20, iterations=4) + 2 * newton_schulz_flops(20, 80, iterations=4)
    assert alone == pytest.approx(2 * image + 3 * text)
    assert elements == 12 * (2 * 32**2 + 3 * 20**2)
    for ranks in (2, 4):
        busiest, exchanged = muon_work(MuonConfig(), clip, num_ranks=ranks)
        assert busiest == pytest.approx(alone / ranks, rel=0.1)
        assert exchanged == elements


def test_a_tower_without_blocks_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"optim.type=muon learns matrices of blocks, and no tower has .*; choose"):
        build_optimizer(MuonConfig(), Towers(nn.Sequential(nn.Conv2d(3, 4, 1))))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.iterations=1", "optim.iterations=1"),
        ("optim.iterations=7", "optim.iterations=7"),
        ("optim.momentum=1", "optim.momentum=1"),
        ("optim.scale=jordan", "optim.scale=jordan"),
        ("optim={image: {locked_steps: all}, text: {locked_steps: all}}", "both towers are locked"),
    ],
)
def test_bad_settings_are_said_when_the_config_is_read(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config([Path(__file__).parents[3] / "configs/tiny.yaml"], ["optim.type=muon", override])
    assert "\n" not in str(caught.value)


def test_the_config_reaches_the_optimizer(clip: CLIP) -> None:
    config = MuonConfig(lr=0.1, momentum=0.5, iterations=2, scale="spectral", betas=(0.1, 0.2), eps=0.5)
    optimizer = build_optimizer(config, clip)
    assert isinstance(optimizer, Muon)
    assert (optimizer._momentum, optimizer._iterations, optimizer._scale) == (0.5, 2, "spectral")
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.1, 0.2), 0.5)}
    assert build_optimizer(AdamWConfig(), clip).__class__ is AdamW
