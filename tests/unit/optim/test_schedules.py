import logging
import math
from typing import Any

import pytest

from clipx.config.optim import AdamWConfig
from clipx.config.run_length import RunLength
from clipx.errors import InputError
from clipx.optim.schedules import build_schedule, learning_rate

LENGTH = RunLength(global_batch_size=8, steps=100, samples=None)


def rate(step: int, *, warmup: int = 10, **settings: Any) -> float:
    return learning_rate(step, peak=2.0, warmup_steps=warmup, num_steps=110, **settings)


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])


def test_cosine_from_the_peak_to_the_minimum() -> None:
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0)
    assert rate(110, minimum=0.5) == pytest.approx(0.5)


def test_constant_up_to_a_linear_cooldown() -> None:
    def constant(step: int) -> float:
        return rate(step, schedule="constant", cooldown_steps=20, minimum=0.5)

    assert [constant(step) for step in (4, 10, 90)] == pytest.approx([1.0, 2.0, 2.0])
    assert [constant(step) for step in (91, 100, 109, 110)] == pytest.approx([1.925, 1.25, 0.575, 0.5])
    assert rate(109, schedule="constant", minimum=0.5) == 2.0


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rate(0, warmup=0) == pytest.approx(2.0)


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    assert learning_rate(5, peak=1.0, warmup_steps=5, num_steps=5) == pytest.approx(1.0)


def built(**settings: Any) -> Any:
    return build_schedule(AdamWConfig(lr=1.0, **settings), LENGTH)


def test_lengths_in_pairs_take_the_place_of_steps() -> None:
    schedule = built(warmup_samples=73, schedule="constant", cooldown_samples=160)  # 10 and 20 steps
    assert [schedule(step) for step in (0, 9, 80, 90)] == pytest.approx([0.1, 1.0, 1.0, 0.5])


def test_without_a_change_of_the_batch_pairs_and_steps_are_the_same_curve_to_the_bit() -> None:
    for settings in ({}, {"schedule": "constant", "cooldown_steps": 7}, {"min_lr": 1.0e-5, "warmup_samples": 72}):
        config = AdamWConfig(lr=3.0e-4, **{"warmup_steps": 9, **settings})  # type: ignore[arg-type]
        lengths = [RunLength(global_batch_size=8, steps=s, samples=p) for s, p in ((100, None), (None, 800))]
        by_steps, by_pairs = (build_schedule(config, length) for length in lengths)
        plain = {"peak": config.lr, "warmup_steps": 9, "num_steps": 100, "minimum": config.min_lr}
        kind = {"schedule": config.schedule, "cooldown_steps": config.cooldown_steps}
        expected = [learning_rate(step, **plain, **kind) for step in range(100)]
        assert [by_steps(step) for step in range(100)] == expected
        assert [by_pairs(step) for step in range(100)] == expected


def in_pairs(seen: float, *, warmup: float, total: float) -> float:
    if seen < warmup:
        return (seen + 16) / warmup
    return 0.5 * (1 + math.cos(math.pi * (seen - warmup) / (total - warmup)))


@pytest.mark.parametrize("warmup", [{"warmup_samples": 160}, {"warmup_steps": 15}])
def test_a_run_in_pairs_follows_pairs_through_a_change_of_the_batch(warmup: dict[str, int]) -> None:
    """8 pairs a step for 10 steps, then 16: 20 of 8 would have been the warm-up, or 15 steps of either."""
    length = RunLength(global_batch_size=16, steps=None, samples=800, changes=((10, 80),))
    assert length.num_steps == 55
    schedule = build_schedule(AdamWConfig(lr=1.0, **warmup), length)  # type: ignore[arg-type]
    expected = [in_pairs(80 + 16 * step, warmup=160, total=800) for step in range(45)]
    if "warmup_steps" in warmup:
        expected[:5] = [(11 + step) / 15 for step in range(5)]
    assert [schedule(step) for step in range(10, 55)] == pytest.approx(expected)


def test_a_run_in_steps_follows_steps_through_a_change_of_the_batch() -> None:
    changed = RunLength(global_batch_size=16, steps=100, samples=None, changes=((10, 80),))
    schedules = [build_schedule(AdamWConfig(lr=1.0, warmup_steps=20), length) for length in (changed, LENGTH)]
    assert [schedules[0](step) for step in range(100)] == [schedules[1](step) for step in range(100)]


def test_a_cooldown_in_pairs_is_the_last_pairs_through_a_change_of_the_batch() -> None:
    length = RunLength(global_batch_size=16, steps=None, samples=800, changes=((10, 80),))
    settings = AdamWConfig(lr=1.0, warmup_steps=0, schedule="constant", cooldown_samples=160)
    schedule = build_schedule(settings, length)
    assert [schedule(step) for step in range(44, 55)] == pytest.approx([1.0, 1.0, *(0.1 * k for k in range(9, 0, -1))])


def test_a_warm_up_longer_than_the_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert built(warmup_steps=200)(99) == pytest.approx(0.5)
    assert "the warm-up of 200 steps is longer than the run of 100" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 60, "schedule": "constant", "cooldown_steps": 41}, "warm-up of 60 and a cooldown of 41"),
        ({"warmup_steps": 0, "cooldown_steps": 5}, "cooldown of 5 steps needs optim.schedule=constant"),
        ({"schedule": "constant", "cooldown_steps": 5, "cooldown_samples": 8}, "give one of the two"),
        ({"warmup_steps": 0, "min_lr": 2.0}, "optim.min_lr=2.0 is above optim.lr=1.0"),
    ],
)
def test_bad_combinations_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        built(**settings)
    assert "\n" not in str(caught.value)
