import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import tiny_config
from tiny_clip import CLIP_VOCABULARY, tiny_model_config
from torch import nn

from clipx.config.geometry import micro_batch_sizes
from clipx.distributed.runtime import Runtime, start_runtime
from clipx.errors import InputError
from clipx.models.clip import build_model
from clipx.models.dry_run import LiveBytes, dry_run
from clipx.train import micro_batch
from clipx.train.micro_batch import largest_micro_batch
from clipx.types import tensors_of

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

    def run(num_pairs: int) -> None:
        if BASE + num_pairs * SLOPE > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pretend(num_pairs)

    return run


def needed(num_pairs: int) -> int:
    """The smallest limit of which 90% hold so many pairs."""
    return -(-10 * (BASE + num_pairs * SLOPE) // 9) + 10


@pytest.mark.parametrize(("room", "found"), [(120, 120), (119, 60), (60, 60), (31, 30), (7, 6), (1, 1), (10_000, 120)])
def test_is_the_largest_divisor_that_fits(room: int, found: int, runtime: Runtime) -> None:
    assert (
        largest_micro_batch(MODEL, sizes=SIZES, run=pretend, reserved_bytes=0, runtime=runtime, limit=needed(room))
        == found
    )
    beside = 30 * SLOPE
    larger = needed(room) + -(-10 * beside // 9)
    assert (
        largest_micro_batch(MODEL, sizes=SIZES, run=pretend, reserved_bytes=beside, runtime=runtime, limit=larger)
        == found
    )


@pytest.mark.parametrize("room", [1, 3, 5, 25])
def test_measures_less_where_little_fits(room: int, runtime: Runtime) -> None:
    limit = needed(room)
    found = largest_micro_batch(MODEL, sizes=SIZES, run=limited(limit), reserved_bytes=0, runtime=runtime, limit=limit)
    assert found == max(size for size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24) if size <= room)


def test_says_when_nothing_fits(runtime: Runtime) -> None:
    for run, limit in ((pretend, needed(1) - SLOPE), (limited(BASE), BASE)):
        with pytest.raises(InputError, match="not one pair fits"):
            largest_micro_batch(MODEL, sizes=SIZES, run=run, reserved_bytes=0, runtime=runtime, limit=limit)


def test_without_a_limit_the_free_memory_of_this_rank_counts(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "rank_memory", lambda: needed(31))
    assert largest_micro_batch(MODEL, sizes=SIZES, run=pretend, reserved_bytes=0, runtime=runtime) == 30


def test_says_what_it_found(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        largest_micro_batch(MODEL, sizes=SIZES, run=pretend, reserved_bytes=0, runtime=runtime, limit=needed(31))
    assert "micro_batch_size: 30 of the 120 pairs of a rank; 30 took 0.00 GB" in caplog.text


def test_other_errors_are_not_taken_for_want_of_memory(runtime: Runtime) -> None:
    def broken(num_pairs: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_micro_batch(MODEL, sizes=SIZES, run=broken, reserved_bytes=0, runtime=runtime)


def test_a_real_model_is_measured_and_left_without_gradients(runtime: Runtime) -> None:
    model = build_model(tiny_model_config(), vocab_size=CLIP_VOCABULARY, seed=0)
    run = dry_run(
        lambda batch: tensors_of(model(batch, seed=0)).values(),
        image_size=24,
        context_length=16,
        device=runtime.device,
    )
    run(1)  # makes the gradients
    with LiveBytes() as live:
        run(96)
    limit = -(-10 * live.peak // 9) + 10
    found = largest_micro_batch(
        model, sizes=micro_batch_sizes(768), run=run, reserved_bytes=0, runtime=runtime, limit=limit
    )
    assert found == 96
    assert all(parameter.grad is None for parameter in model.parameters())
