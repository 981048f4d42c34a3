"""What FSDP2 shards must learn as what it does not; tensors of 1 to 9 rows on 2 ranks, so that parts are unequal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed.ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from clipx.config.optim import AdamWConfig, MuonConfig, OptimConfig, StableAdamWConfig, TimmOptimConfig
from clipx.optim.ema import Ema
from clipx.optim.optimizers import build_optimizer, update
from clipx.optim.param_groups import lock

CONFIGS: dict[str, OptimConfig] = {
    "adamw": AdamWConfig(lr=0.01),
    "stable_adamw": StableAdamWConfig(lr=0.01),
    "muon": MuonConfig(lr=0.01),
    **{name: TimmOptimConfig(name=name, lr=0.01) for name in ("lion", "adopt", "lamb", "adan")},
}


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7)) for _ in range(2))
        self.projection = nn.Linear(7, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.projection(x)


class Model(nn.Module):
    """CLIP's names; one tower is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.text_tower = Tower()
        self.log_logit_scale = nn.Parameter(torch.ones(1))

    def block_lists(self) -> list[list[nn.Module]]:
        return [[], list(self.text_tower.blocks)]

    def forward(self) -> Tensor:
        return (self.text_tower(torch.arange(9)) * self.log_logit_scale.exp()).square().sum()


def made(config: OptimConfig, *, sharded: bool) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Model().double()
    optimizer = None if sharded else build_optimizer(config, model)
    if sharded:
        for block in model.text_tower.blocks:
            fully_shard(block)
        fully_shard(model)
    return model, optimizer or build_optimizer(config, model)


def train(model: Model, optimizer: torch.optim.Optimizer, good: bool = True, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    (model() * (factor if good else torch.nan)).backward()
    update(optimizer, torch.tensor(good))


def whole(tensors: Any) -> list[Tensor]:
    found = [tensor.detach() for tensor in tensors]
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone() for tensor in found]


def trained(name: str) -> list[list[Tensor]]:
    results = []
    for sharded in (False, True):
        model, optimizer = made(CONFIGS[name], sharded=sharded)
        for good, factor in ((True, 1.0), (False, 1.0), (True, 1.0), (True, 50.0)):  # a jump, which must be clipped
            train(model, optimizer, good, factor)
        results.append(whole(model.parameters()))
    return results


@pytest.mark.parametrize("name", CONFIGS)
def test_sharded_parameters_learn_as_whole_ones(name: str) -> None:
    for alone, sharded in run_ranks(trained, 2, name):
        for wanted, found in zip(alone, sharded, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)  # fused AdamW keeps float32 step counts


def averaged(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for sharded in (False, True):
        model, optimizer = made(AdamWConfig(lr=0.01), sharded=sharded)
        ema = Ema(model, decay=0.5)
        for step, good in enumerate((True, False, True)):
            train(model, optimizer, good)
            ema.update(torch.tensor(good), step=step)
        before = model().item()
        with ema.swapped(), torch.no_grad():
            within = model().item()
        after = model().item()
        results[f"{sharded}"] = whole(ema.state_dict().values()), within
        results[f"{sharded} losses"] = before, after
        if sharded:
            save({"ema": ema.state_dict()}, checkpoint_id=folder)
            other = Ema(made(AdamWConfig(), sharded=True)[0], decay=0.5)
            load({"ema": other.state_dict()}, checkpoint_id=folder)
            results["loaded"] = whole(other.state_dict().values())
    return results


def test_the_average_of_sharded_parameters(tmp_path: Path) -> None:
    for result in run_ranks(averaged, 2, tmp_path):
        torch.testing.assert_close(result["True"], result["False"])
        assert all(torch.equal(a, b) for a, b in zip(result["loaded"], result["True"][0], strict=True))
        before, after = result["True losses"]
        assert before == after  # FSDP2 kept no gathered weights of the average
        assert before != result["True"][1]


def unlocked() -> tuple[bool, bool]:
    model, optimizer = made(StableAdamWConfig(lr=0.01), sharded=True)
    lock(model, frozenset({"text"}))
    start = whole(model.text_tower.blocks.parameters())
    train(model, optimizer)
    locked = whole(model.text_tower.blocks.parameters())
    model.requires_grad_(True)
    train(model, optimizer)
    free = whole(model.text_tower.blocks.parameters())
    return all(map(torch.equal, start, locked)), any(map(torch.equal, locked, free))


def test_fsdp2_follows_when_a_tower_is_unlocked() -> None:
    assert run_ranks(unlocked, 2) == [(True, False)] * 2
