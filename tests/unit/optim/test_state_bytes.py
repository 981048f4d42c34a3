"""The optimizer's state without its numbers, beside a real one."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from clipx.config.schema import RunConfig
from clipx.models.clip import CLIP, build_model
from clipx.optim.optimizers import build_optimizer
from clipx.optim.state_bytes import optimizer_bytes

WORDS = 500


def config_and_towers(folder: Path, optimizer: str) -> tuple[RunConfig, CLIP]:
    config = tiny_config(folder / "run", "none.tar", f"optim={optimizer}")
    return config, build_model(config.model, vocab_size=WORDS, seed=0)


@pytest.mark.parametrize(
    "optimizer",
    ["{}", "{type: stable_adamw}", *(f"{{type: timm, name: {name}}}" for name in ("lion", "adan", "adafactorbv"))],
)
@pytest.mark.parametrize("locked", [False, True])
def test_they_are_those_after_a_real_step(optimizer: str, locked: bool, tmp_path: Path) -> None:
    config, towers = config_and_towers(tmp_path, optimizer)
    towers.image_tower.requires_grad_(not locked)
    reckoned = optimizer_bytes(config.optim, towers)
    for weight in towers.parameters():
        assert weight.grad is None
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    steps = build_optimizer(config.optim, towers)
    steps.step()
    states = (value for state in steps.state.values() for value in state.values())
    found = sum(value.nbytes for value in states if torch.is_tensor(value))
    assert reckoned == pytest.approx(found, rel=2e-3)  # but for counts of steps


def test_without_numbers_to_look_at_two_moments_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, towers = config_and_towers(tmp_path, "{type: timm, name: lion}")

    def looks(*_: object) -> None:
        torch.ones(1).item()
        raise ValueError("no such number")

    monkeypatch.setattr("clipx.optim.state_bytes.build_optimizer", looks)
    assert optimizer_bytes(config.optim, towers) == 8 * sum(weight.numel() for weight in towers.parameters())
