import pytest
import torch
from tiny_clip import tiny_model_config

from clipx.models.clip import build_model
from clipx.models.dry_run import LiveBytes, dry_run
from clipx.types import tensors_of


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
    run = dry_run(
        lambda batch: tensors_of(model(batch, seed=0)).values(),
        image_size=24,
        context_length=16,
        device=torch.device("cpu"),
    )
    run(1)
    peaks = []
    for size in (128, 160, 224, 320):
        with LiveBytes() as live:
            run(size)
        peaks.append(live.peak)
    slope = (peaks[1] - peaks[0]) / 32
    assert peaks[2] == pytest.approx(peaks[0] + 96 * slope, rel=0.01)
    assert peaks[3] == pytest.approx(peaks[0] + 192 * slope, rel=0.01)


def test_pixels_count_twice_as_the_next_arrive_meanwhile() -> None:
    weight = torch.ones(1, requires_grad=True)
    run = dry_run(lambda batch: [2 * weight], image_size=24, context_length=1, device=torch.device("cpu"))
    with LiveBytes() as live:
        run(100)
    assert 2 * 100 * 24 * 24 * 3 <= live.peak < 2.1 * 100 * 24 * 24 * 3
