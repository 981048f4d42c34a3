import pytest

from clipx.optim.schedules import learning_rate


def rate(step: int, *, warmup: int = 10, minimum: float = 0.0) -> float:
    return learning_rate(step, peak=2.0, warmup_steps=warmup, num_steps=110, minimum=minimum)


def test_warm_up_is_linear_and_never_zero() -> None:
    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])


def test_cosine_from_the_peak_to_the_minimum() -> None:
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0)
    assert rate(110, minimum=0.5) == pytest.approx(0.5)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rate(0, warmup=0) == pytest.approx(2.0)


def test_a_run_that_is_all_warm_up_never_divides_by_zero() -> None:
    assert learning_rate(5, peak=1.0, warmup_steps=5, num_steps=5) == pytest.approx(1.0)
