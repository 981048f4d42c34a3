"""Every optimizer's state through a checkpoint; needs no more of the store than what training uses."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipx.checkpoint import tensors
from clipx.checkpoint.tensors import state_of, write_state
from clipx.config.optim import (
    AdamWConfig,
    MuonConfig,
    OptimConfig,
    StableAdamWConfig,
    TimmOptimConfig,
    TowerOptimConfig,
)
from clipx.optim.optimizers import build_optimizer, update
from clipx.optim.param_groups import lock
from clipx.storage.folders import folder_at

# states of tensors, of numbers, of booleans, and counts that stand in the group (lamb a tensor, adan a number)
TIMM = ("lion", "adopt", "muon", "lamb", "adan", "adafactorbv", "madgrad", "laprop", "sgd", "nadam")
CONFIGS: dict[str, OptimConfig] = {
    "adamw": AdamWConfig(lr=0.01),
    "stable_adamw": StableAdamWConfig(lr=0.01),
    "muon": MuonConfig(lr=0.01),
    **{f"timm {name}": TimmOptimConfig(name=name, lr=0.01) for name in TIMM},
}


def save_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    write_state(folder_at(folder), state_of(model, optimizer), None)


def load_tensors(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors.load_tensors(folder_at(folder), model, optimizer)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_tower = nn.ModuleDict({"trunk": nn.Linear(8, 8), "projection": nn.Linear(8, 4, bias=False)})
        self.text_tower = nn.Embedding(5, 4)
        self.log_logit_scale = nn.Parameter(torch.zeros(1))

    def block_lists(self) -> list[list[nn.Module]]:
        return [[self.image_tower["trunk"]], []]

    def forward(self) -> Tensor:
        x = self.image_tower["projection"](self.image_tower["trunk"](torch.arange(24.0).view(3, 8).cos()))
        return (x @ self.text_tower.weight.T * self.log_logit_scale.exp()).square().sum()


def made(config: OptimConfig, seed: int = 0) -> tuple[Small, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Small()
    return model, build_optimizer(config, model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        update(optimizer, torch.tensor(True))


def states(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    return dict(optimizer.state_dict()["state"])


def assert_same_state(some: dict[Any, Any], others: dict[Any, Any]) -> None:
    assert some.keys() == others.keys()
    for number, state in some.items():
        assert {name: type(value) for name, value in state.items()} == {
            name: type(value) for name, value in others[number].items()
        }
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(others[number][name])), name


@pytest.mark.parametrize("name", CONFIGS)
def test_comes_back_bit_for_bit_and_goes_on_the_same(name: str, tmp_path: Path) -> None:
    model, optimizer = made(CONFIGS[name])
    train(model, optimizer, 3)
    save_tensors(tmp_path / "saved", model, optimizer)
    other, other_optimizer = made(CONFIGS[name], seed=1)
    load_tensors(tmp_path / "saved", other, other_optimizer)
    assert_same_state(states(optimizer), states(other_optimizer))
    for each in ((model, optimizer), (other, other_optimizer)):
        train(*each, 2)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_settings_of_the_groups_come_from_the_config_and_so_do_the_groups(tmp_path: Path) -> None:
    """Also a checkpoint from before there were shares of the learning rate: what it has not is the config's."""
    model, optimizer = made(AdamWConfig(lr=0.01))
    for group in optimizer.param_groups:
        del group["lr_scale"]
    train(model, optimizer, 2)
    save_tensors(tmp_path / "saved", model, optimizer)
    config = AdamWConfig(lr=0.5, betas=(0.5, 0.75), text=TowerOptimConfig(lr_scale=0.25))
    other, other_optimizer = made(config, seed=1)
    load_tensors(tmp_path / "saved", other, other_optimizer)
    assert [(group["lr_scale"], group["betas"]) for group in other_optimizer.param_groups] == [
        (1.0, (0.5, 0.75)),
        (1.0, (0.5, 0.75)),
        (0.25, (0.5, 0.75)),
    ]
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert all(torch.equal(v, other_optimizer.state[two][k]) for k, v in optimizer.state[one].items())


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "muon", "timm lion"])
def test_a_tower_that_was_locked_when_saved_begins_without_state(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = made(CONFIGS[name])
    lock(model, frozenset({"image"}))
    train(model, optimizer, 3)
    save_tensors(tmp_path / "saved", model, optimizer)
    other, other_optimizer = made(CONFIGS[name], seed=1)  # unlocked, as at the step that unlocks
    with caplog.at_level(logging.WARNING):
        load_tensors(tmp_path / "saved", other, other_optimizer)
    assert "2 of 5 parameters have no optimizer state" in caplog.text
    model.requires_grad_(True)
    for each in ((model, optimizer), (other, other_optimizer)):
        train(*each, 2)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert_same_state(states(optimizer), states(other_optimizer))


def test_a_tower_that_is_still_locked_comes_back_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [made(AdamWConfig(lr=0.01), seed=seed) for seed in (0, 1)]
    for model, _ in models:
        lock(model, frozenset({"image"}))
    (model, optimizer), (other, other_optimizer) = models
    train(model, optimizer, 3)
    save_tensors(tmp_path / "saved", model, optimizer)
    with caplog.at_level(logging.WARNING):
        load_tensors(tmp_path / "saved", other, other_optimizer)
    assert "optimizer state" not in caplog.text
    assert_same_state(states(optimizer), states(other_optimizer))
