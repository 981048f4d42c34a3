import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import tiny_config
from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import nn

from clipx.config.geometry import micro_batch_sizes
from clipx.config.parallel import DdpConfig, Fsdp2Config
from clipx.distributed.runtime import Runtime, start_runtime
from clipx.errors import InputError
from clipx.models.clip import CLIP, build_model
from clipx.train.micro_batch import LiveBytes, largest_micro_batch, loss_bytes, rehearsal, state_bytes

BASE, SLOPE = 1_000_000, 50_000
MODEL = nn.Linear(1, 1)
SIZES = micro_batch_sizes(120)


@pytest.fixture
def runtime(tmp_path) -> Iterator[Runtime]:
    with start_runtime(tiny_config(tmp_path, "none.tar")) as started:
        yield started


def pretend(num_pairs: int) -> None:
    """A pass that takes BASE + num_pairs SLOPE bytes at its height."""
    base = torch.empty(BASE, dtype=torch.uint8)
    pairs = [torch.empty(SLOPE, dtype=torch.uint8) for _ in range(num_pairs)]
    del base, pairs


def limited(limit: int) -> Callable[[int], None]:
    """The same on a device of `limit` bytes."""

    def rehearse(num_pairs: int) -> None:
        if BASE + num_pairs * SLOPE > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pretend(num_pairs)

    return rehearse


def needed(num_pairs: int) -> int:
    """The smallest limit of which 90% hold so many pairs."""
    return -(-10 * (BASE + num_pairs * SLOPE) // 9) + 10


@pytest.mark.parametrize(("room", "found"), [(120, 120), (119, 60), (60, 60), (31, 30), (7, 6), (1, 1), (10_000, 120)])
def test_is_the_largest_divisor_that_fits(room: int, found: int, runtime: Runtime) -> None:
    assert (
        largest_micro_batch(MODEL, sizes=SIZES, rehearse=pretend, beside=0, runtime=runtime, limit=needed(room))
        == found
    )
    beside = 30 * SLOPE
    larger = needed(room) + -(-10 * beside // 9)
    assert (
        largest_micro_batch(MODEL, sizes=SIZES, rehearse=pretend, beside=beside, runtime=runtime, limit=larger) == found
    )


@pytest.mark.parametrize("room", [1, 3, 5, 25])
def test_measures_less_where_little_fits(room: int, runtime: Runtime) -> None:
    limit = needed(room)
    found = largest_micro_batch(MODEL, sizes=SIZES, rehearse=limited(limit), beside=0, runtime=runtime, limit=limit)
    assert found == max(size for size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24) if size <= room)


def test_says_when_nothing_fits(runtime: Runtime) -> None:
    for rehearse, limit in ((pretend, needed(1) - SLOPE), (limited(BASE), BASE)):
        with pytest.raises(InputError, match="not one pair fits"):
            largest_micro_batch(MODEL, sizes=SIZES, rehearse=rehearse, beside=0, runtime=runtime, limit=limit)


def test_says_what_it_found(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        largest_micro_batch(MODEL, sizes=SIZES, rehearse=pretend, beside=0, runtime=runtime, limit=needed(31))
    assert "micro_batch_size: 30 of the 120 pairs of a rank; 30 took 0.00 GB" in caplog.text


def test_other_errors_are_not_taken_for_want_of_memory(runtime: Runtime) -> None:
    def broken(num_pairs: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_micro_batch(MODEL, sizes=SIZES, rehearse=broken, beside=0, runtime=runtime)


def test_live_bytes_are_those_alive_at_once() -> None:
    before = torch.zeros(1000)
    with LiveBytes() as live:
        doubled = before * 2
        view = doubled[:10]
        doubled.add_(1)
        del doubled
        again = view + 1  # the view keeps all of it
        del view
        torch.zeros(500)
    assert live.peak == 4 * (1000 + 500) or live.peak == 4 * (1000 + 10)
    del again


def test_memory_of_a_large_pass_is_linear_in_its_pairs() -> None:
    # Few words: the gradient of a large embedding would be the height of the smaller passes.
    model = build_model(tiny_model_config(), vocab_size=50, seed=0)
    cpu = torch.device("cpu")
    rehearse = rehearsal(lambda batch: model(batch, seed=0), image_size=24, context_length=16, device=cpu)
    rehearse(1)
    peaks = []
    for size in (128, 160, 224, 320):
        with LiveBytes() as live:
            rehearse(size)
        peaks.append(live.peak)
    slope = (peaks[1] - peaks[0]) / 32
    assert peaks[2] == pytest.approx(peaks[0] + 96 * slope, rel=0.01)
    assert peaks[3] == pytest.approx(peaks[0] + 192 * slope, rel=0.01)


def test_a_real_model_is_measured_and_left_without_gradients(runtime: Runtime) -> None:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    rehearse = rehearsal(lambda batch: model(batch, seed=0), image_size=24, context_length=16, device=runtime.device)
    with LiveBytes() as live:
        rehearse(1)  # makes the gradients
        rehearse(96)
    gradients = 4 * sum(parameter.numel() for parameter in model.parameters())
    limit = -(-10 * live.peak // 9)
    found = largest_micro_batch(
        model, sizes=micro_batch_sizes(768), rehearse=rehearse, beside=gradients, runtime=runtime, limit=limit
    )
    assert found == 96  # the line through small passes promises 128
    assert all(parameter.grad is None for parameter in model.parameters())


def tiny_parts() -> tuple[CLIP, list[nn.Module], int]:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    blocks = [block for blocks in model.block_lists() for block in blocks]
    return model, blocks, 4 * sum(parameter.numel() for parameter in model.parameters())


def test_state_under_ddp_is_the_optimizers() -> None:
    model, blocks, whole = tiny_parts()
    assert state_bytes(model, config=DdpConfig(), blocks=blocks, world_size=8, kept=2 * whole) == 3 * whole


def test_sharding_frees_weights_and_gradients() -> None:
    model, blocks, whole = tiny_parts()
    block = max(4 * sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    in_blocks = sum(4 * sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    gathered = 2 * (whole - in_blocks) + 4 * block
    sharded = state_bytes(model, config=Fsdp2Config(), blocks=blocks, world_size=4, kept=2 * whole)
    assert sharded == gathered + whole - whole
    offloaded = state_bytes(model, config=Fsdp2Config(cpu_offload=True), blocks=blocks, world_size=4, kept=2 * whole)
    assert offloaded == gathered - whole
    kept = state_bytes(
        model, config=Fsdp2Config(reshard_after_forward=False), blocks=blocks, world_size=4, kept=2 * whole
    )
    assert kept == sharded - 2 * block + in_blocks


def test_the_loss_stands_for_what_it_holds() -> None:
    small = loss_bytes(rank_batch_size=100, world_size=1, embed_dim=16)
    assert small == 4 * (9 * 100 * 16 + 4 * 100 * 100)
    # beyond the largest tile it grows with b d + G d, and not with b G
    one, eight = (loss_bytes(rank_batch_size=8192, world_size=w, embed_dim=768) for w in (1, 8))
    assert eight - one == 4 * 7 * 8192 * 768
