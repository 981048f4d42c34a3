"""Checkpoints of one parallelism and number of ranks in another, written in the way of the training or beside it."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clipx.checkpoint.background import Background
from clipx.checkpoint.host_copy import HostCopy
from clipx.checkpoint.manifest import Entry
from clipx.checkpoint.state import DataOrderRecord, Progress, RunState
from clipx.checkpoint.store import CheckpointStore
from clipx.checkpoint.tensors import load_tensors, own_share, state_of, write_state
from clipx.distributed.collectives import gather_objects
from clipx.distributed.parallelize import full_tensor

DATA_ORDER = DataOrderRecord(
    fingerprint="f", num_shards=2, num_samples=9, lanes=4, shuffle_window=64, global_batch_size=8, seed=0
)


def made(kind: str, *, seed: int, steps: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    """A model as it trains, the same bare, and its optimizer; equal for every kind and number of ranks."""
    torch.manual_seed(seed)
    bare = nn.Sequential(nn.Linear(7, 10), nn.LayerNorm(10), nn.Linear(10, 3, bias=False))  # 7 and 3 rows divide badly
    model: nn.Module = bare
    if kind == "fsdp2":
        fully_shard(bare[0])
        fully_shard(bare)
    else:
        model = DistributedDataParallel(bare)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=0.1)
    batch = torch.arange(28.0).view(4, 7).cos()
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()
    return model, bare, optimizer


def tensors_of(bare: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    found = {name: full_tensor(parameter.detach()) for name, parameter in bare.named_parameters()}
    for name, parameter in bare.named_parameters():
        for moment, value in optimizer.state[parameter].items():
            found[f"{name}.{moment}"] = full_tensor(value)
    return {name: value.clone() for name, value in found.items()}


def saved_by(kind: str, store: CheckpointStore, beside: bool) -> tuple[dict[str, Tensor], dict[str, Entry]]:
    """Trains a little and saves as step 1; returns the state at that moment, and what this rank wrote."""
    model, bare, optimizer = made(kind, seed=1, steps=3)
    if beside:
        host, background = HostCopy(), Background[dict[str, Entry]](dist.group.WORLD, timeout_s=60)
        assert background.group is not dist.group.WORLD
        host.take(own_share(state_of(model, optimizer), background.group))
        optimizer.step()
    expected = tensors_of(bare, optimizer)
    if beside:
        share = host.take(own_share(state_of(model, optimizer), background.group))  # in the memory of the first
        go = Path(f"{store}.go")
        background.start(lambda: (_wait_for(go), write_state(store.draft(1), share, background.group))[1])
        optimizer.zero_grad()  # the training goes on, with collectives of its own
        model(torch.ones(4, 7)).sum().backward()
        optimizer.step()
        dist.barrier()
        go.touch()
        written = background.take(60)
    else:
        written = write_state(store.draft(1), own_share(state_of(model, optimizer), dist.group.WORLD), dist.group.WORLD)
    of_ranks = gather_objects(written, dist.group.WORLD)
    if dist.get_rank() == 0:
        entries = {name: entry for of_rank in of_ranks for name, entry in of_rank.items()}
        state = RunState(progress=Progress(step=1), data_order=DATA_ORDER, wandb_id="")
        store.publish(1, entries, state=state, config_text="run_dir: r\n")
    return expected, written


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def loaded_by(kind: str, store: CheckpointStore) -> dict[str, Tensor]:
    model, bare, optimizer = made(kind, seed=2, steps=1)
    checkpoint = store.newest()
    assert checkpoint is not None
    load_tensors(checkpoint.folder, model, optimizer)
    return tensors_of(bare, optimizer)


DDP_TO_FSDP2, FSDP2_TO_DDP = (("ddp", 2), ("fsdp2", 3)), (("fsdp2", 3), ("ddp", 2))
MORE_SHARDS, FEWER_COPIES = (("fsdp2", 2), ("fsdp2", 4)), (("ddp", 3), ("ddp", 1))


@pytest.mark.parametrize(
    ("before", "after", "beside"),
    [
        (*DDP_TO_FSDP2, True),
        (*FSDP2_TO_DDP, True),
        (*MORE_SHARDS, False),
        (*FEWER_COPIES, False),
        *[pytest.param(*places, False, marks=pytest.mark.full) for places in (DDP_TO_FSDP2, FSDP2_TO_DDP)],
        *[pytest.param(*places, True, marks=pytest.mark.full) for places in (MORE_SHARDS, FEWER_COPIES)],
    ],
)
def test_any_parallelism_loads_what_any_other_saved(
    before: tuple[str, int], after: tuple[str, int], beside: bool, tmp_path: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    saved = run_ranks(saved_by, before[1], before[0], store, beside)
    expected = saved[0][0]
    assert len(expected) == 5 * 4  # weights, two moments, step
    files = [set(written) for _, written in saved]
    assert all(files)  # every rank has its part
    assert sum(len(names) for names in files) == len(set().union(*files))
    for found in run_ranks(loaded_by, after[1], after[0], store):
        assert found.keys() == expected.keys()
        assert [name for name in found if not found[name].equal(expected[name])] == []


def shares(kind: str) -> dict[tuple[str, str], tuple[str, int]]:
    """What this rank would write."""
    model, _, optimizer = made(kind, seed=1, steps=1)
    share = own_share(state_of(model, optimizer), dist.group.WORLD)
    return {
        (section, name): ("shard" if isinstance(value, DTensor) else "copy", getattr(value, "nbytes", 0))
        for section, values in share.items()
        for name, value in values.items()
    }


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_what_all_ranks_hold_is_copied_and_written_once(kind: str) -> None:
    of_ranks = run_ranks(shares, 3, kind)
    copies = [key for share in of_ranks for key, (held, _) in share.items() if held == "copy"]
    assert len(copies) == len(set(copies)) >= 5  # counts of steps at least
    sizes = [sum(size for held, size in share.values() if held == "copy") for share in of_ranks]
    assert max(sizes) - min(sizes) <= 4 * 7 * 10  # the largest tensor
    shards = [{key for key, (held, _) in share.items() if held == "shard"} for share in of_ranks]
    assert shards[0] == shards[1] == shards[2]
    assert bool(shards[0]) == (kind == "fsdp2")


def refused(store: CheckpointStore, bad_rank: int) -> str:
    """One rank's disk is full."""
    model, _, optimizer = made("ddp", seed=1, steps=1)
    if dist.get_rank() == bad_rank:
        kind: Any = type(store.root)

        def create(self: Any, name: str) -> Any:
            raise OSError(28, "No space left on device")

        kind.create = create
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.CRITICAL)
    try:
        write_state(store.draft(1), own_share(state_of(model, optimizer), dist.group.WORLD), dist.group.WORLD)
    except OSError as error:
        return str(error)
    return "written"


@pytest.mark.parametrize("bad_rank", [0, 1])
def test_all_ranks_learn_that_one_could_not_write(bad_rank: int, tmp_path: Path) -> None:
    found = run_ranks(refused, 2, CheckpointStore(tmp_path), bad_rank)
    assert found == ["[Errno 28] No space left on device"] * 2
