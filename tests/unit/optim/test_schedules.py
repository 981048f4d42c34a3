import logging
from typing import Any

import pytest

from clipx.config.optim import AdamWConfig
from clipx.errors import InputError
from clipx.optim.schedules import build_schedule, learning_rate


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
    return build_schedule(AdamWConfig(lr=1.0, **settings), num_steps=100, in_steps=lambda samples: -(-samples // 8))


def test_lengths_in_pairs_take_the_place_of_steps() -> None:
    schedule = built(warmup_samples=73, schedule="constant", cooldown_samples=160)  # 10 and 20 steps
    assert [schedule(step) for step in (0, 9, 80, 90)] == pytest.approx([0.1, 1.0, 1.0, 0.5])


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
