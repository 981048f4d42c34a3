"""Muon on 1, 2 and 4 ranks, whole and sharded: the same weights, the same runs, checkpoints of one for the other."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from tiny import losses, tiny_config, write_scenes
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from clipx.config.optim import MuonConfig
from clipx.config.schema import RunConfig
from clipx.distributed import collectives
from clipx.distributed.parallelize import full_tensor
from clipx.optim import shared_matrices
from clipx.optim.optimizers import build_optimizer, update
from clipx.train.trainer import train


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return x + self.fc2(self.fc1(q * k.tanh() + v).sin())


class Model(nn.Module):
    """CLIP's names; widths that 2 and 4 ranks do not divide, and one of fewer rows than 4 ranks have."""

    def __init__(self) -> None:
        super().__init__()
        self.image_tower = nn.ModuleList([Block(7), Block(7)])
        self.text_tower = nn.ModuleList([Block(3)])
        self.embedding = nn.Embedding(5, 7)
        self.log_logit_scale = nn.Parameter(torch.ones(1))

    def block_lists(self) -> list[list[nn.Module]]:
        return [list(self.image_tower), list(self.text_tower)]

    def forward(self) -> Tensor:
        x = self.embedding(torch.arange(5))
        for block in self.image_tower:
            x = block(x)
        for block in self.text_tower:
            x = torch.cat([block(x[:, :3]), x[:, 3:]], dim=1)
        return (x * self.log_logit_scale.exp()).square().sum()


def trained(kind: str) -> list[Tensor]:
    """Weights and momentum, whole, after good and bad steps."""
    torch.manual_seed(0)
    model = Model().double()
    if kind == "sharded":
        for blocks in model.block_lists():
            for block in blocks:
                fully_shard(block)
        fully_shard(model)
    group = None if kind == "alone" else dist.group.WORLD
    optimizer = build_optimizer(MuonConfig(lr=0.05), model, group=group)
    for good, factor in ((True, 1.0), (False, 1.0), (True, 1.0), (True, 50.0)):
        optimizer.zero_grad()
        (model() * (factor if good else torch.nan)).backward()
        update(optimizer, torch.tensor(good))
    weights = list(model.parameters())
    moments = [optimizer.state[weight]["momentum"] for weight in weights if "momentum" in optimizer.state[weight]]
    assert len(moments) == 3 * 3
    return [full_tensor(tensor.detach()).clone() for tensor in (*weights, *moments)]


def every_kind() -> dict[str, list[Tensor]]:
    return {kind: trained(kind) for kind in ("alone", "whole", "sharded")}


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_work_and_learn_the_same(world_size: int) -> None:
    for found in run_ranks(every_kind, world_size):
        for kind in ("whole", "sharded"):
            for tensor, wanted in zip(found[kind], found["alone"], strict=True):
                torch.testing.assert_close(tensor, wanted, rtol=1e-9, atol=1e-9)


def work_and_messages(kind: str) -> tuple[int, list[str]]:
    """How many matrices this rank orthogonalises in a step, and the collectives of the optimizer."""
    from clipx.optim import muon

    calls: list[int] = []
    messages: list[str] = []
    real = muon.orthogonalised

    def counting(matrices: list[Tensor], *args: torch.dtype, **settings: object) -> list[Tensor]:
        calls.append(len(matrices))
        return real(matrices, *args, **settings)  # type: ignore[arg-type]

    muon.orthogonalised = counting  # type: ignore[assignment]
    for name in ("all_gather", "all_to_all"):
        collective = getattr(collectives, name)

        def noted(*args: object, name: str = name, collective: object = collective, **sizes: object) -> Tensor:
            messages.append(name)
            return collective(*args, **sizes)  # type: ignore[operator, no-any-return]

        setattr(shared_matrices, name, noted)
    trained(kind)
    return sum(calls) // 4, messages[: len(messages) // 4]


@pytest.mark.parametrize(("kind", "expected"), [("whole", ["all_gather"]), ("sharded", ["all_to_all"] * 2)])
def test_every_matrix_is_computed_once_and_messages_are_few(kind: str, expected: list[str]) -> None:
    found = run_ranks(work_and_messages, 4, kind)
    assert sum(number for number, _ in found) == 3 * (3 + 1 + 1)
    assert all(0 < number < 8 for number, _ in found)
    assert [messages for _, messages in found] == [expected] * 4


MUON = "optim={type: muon, lr: 0.01, weight_decay: 0.1, warmup_steps: 2, text: {layer_decay: 0.8}}"
FSDP2 = "parallel.type=fsdp2"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes") / "train"


def config_of(run_dir: Path, shards: Path, *more: str) -> RunConfig:
    settings = ["steps=12", "checkpoint.every_steps=4", "checkpoint.keep_last=9", "micro_batch_size=3", "ema.decay=0.9"]
    return tiny_config(run_dir, shards, MUON, *settings, *more)


@pytest.mark.full
def test_runs_do_not_depend_on_ranks_and_resume_on_others(shards: Path, tmp_path: Path) -> None:
    """Two ranks sharded, then one, then two whole, beside one rank all along."""
    assert train(config_of(tmp_path / "alone", shards)) == 0
    changing = tmp_path / "changing"
    assert run_ranks(train, 2, config_of(changing, shards, FSDP2)) == [0, 0]
    sharded = losses(changing)
    forget_after(changing, 4)
    assert train(config_of(changing, shards)) == 0
    forget_after(changing, 8)
    assert run_ranks(train, 2, config_of(changing, shards)) == [0, 0]
    wanted = losses(tmp_path / "alone")
    assert sharded == pytest.approx(wanted, abs=1e-5)
    assert losses(changing) == pytest.approx(wanted, abs=1e-5)
    assert wanted[-1] < wanted[0] - 0.1


@pytest.mark.full
@pytest.mark.parametrize("parallel", ["parallel.type=ddp", FSDP2])
def test_four_ranks_hand_over_to_two_and_one(parallel: str, shards: Path, tmp_path: Path) -> None:
    assert train(config_of(tmp_path / "alone", shards)) == 0
    changing = tmp_path / "changing"
    assert run_ranks(train, 4, config_of(changing, shards, parallel)) == [0] * 4
    four = losses(changing)
    forget_after(changing, 4)
    assert run_ranks(train, 2, config_of(changing, shards, FSDP2)) == [0, 0]
    forget_after(changing, 8)
    assert train(config_of(changing, shards)) == 0
    wanted = losses(tmp_path / "alone")
    assert four == pytest.approx(wanted, abs=1e-5)
    assert losses(changing) == pytest.approx(wanted, abs=1e-5)


def forget_after(run_dir: Path, step: int) -> None:
    """What a kill right after the save of `step` leaves behind."""
    for folder in (run_dir / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            folder.rename(run_dir / f"gone-after-{step}-{folder.name}")
