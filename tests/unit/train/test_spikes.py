"""Leaps of the loss are found, and what a healthy run does is none."""

import math

import numpy as np
import pytest

from clipx.config.checkpoint import SpikeConfig
from clipx.train.spikes import SpikeDetector

CONFIG = SpikeConfig(window=64)
STEPS = np.arange(2000)


def leaps(losses: np.ndarray, recent: list[float] | None = None) -> list[int]:
    """The steps at which a loss leaps."""
    detector = SpikeDetector(CONFIG, [] if recent is None else recent)
    return [step for step, loss in enumerate(losses) if detector.look(float(loss)) is not None]


def learning(noise: float, *, seed: int = 0) -> np.ndarray:
    """A loss that falls from 8.3 towards 1, with relative noise."""
    return (1 + 7.3 * np.exp(-STEPS / 400)) * (1 + noise * np.random.default_rng(seed).standard_normal(STEPS.size))


@pytest.mark.parametrize("noise", [0.0, 1e-4, 0.01, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_learning_is_no_leap(noise: float, seed: int) -> None:
    assert leaps(learning(noise, seed=seed)) == []


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_a_leap_is_found_at_its_step_and_forgotten(noise: float) -> None:
    losses = learning(noise)
    losses[[1000, 1001, 1500]] *= 2
    assert leaps(losses) == [1000, 1001, 1500]


def test_a_slow_rise_is_no_leap() -> None:
    assert leaps(2 + STEPS / 300) == []  # by a factor of 4 in all, and far beyond the deviation within a window


def test_a_fall_is_no_leap() -> None:
    assert leaps(np.append(np.full(64, 4.0), 1.0)) == []


def test_a_plateau_is_no_leap_until_the_loss_rises_by_8_percent() -> None:
    flat = np.full(200, 4.0)
    assert leaps(np.append(flat, 4.0 * 1.079)) == []
    assert leaps(np.append(flat, 4.0 * 1.081)) == [200]


def test_rounding_near_zero_is_no_leap() -> None:
    flat = np.zeros(200)
    assert leaps(np.append(flat, 0.0079)) == []
    assert leaps(np.append(flat, 0.0081)) == [200]


def test_nothing_leaps_before_the_window_is_full() -> None:
    assert leaps(np.append(np.ones(63), 100.0)) == []
    assert leaps(np.append(np.ones(64), 100.0)) == [64]


def test_the_score_counts_robust_standard_deviations() -> None:
    losses = np.random.default_rng(0).normal(5.0, 0.5, 4096).tolist()
    score = SpikeDetector(SpikeConfig(window=4096), losses).look(10.0)
    assert score == pytest.approx(10, rel=0.05)


def test_losses_that_are_not_finite_are_neither_leaps_nor_remembered() -> None:
    recent = [1.0] * 64
    detector = SpikeDetector(CONFIG, recent)
    assert [detector.look(loss) for loss in (math.nan, math.inf, -math.inf)] == [None] * 3
    assert recent == [1.0] * 64


def test_what_is_remembered_is_all_the_state() -> None:
    losses = learning(0.02)
    losses[1900] *= 3
    recent: list[float] = []
    leaps(losses[:1000], recent)
    assert recent == losses[1000 - 64 : 1000].tolist()
    assert [1000 + step for step in leaps(losses[1000:], list(recent))] == leaps(losses) == [1900]


def test_a_smaller_window_keeps_the_latest() -> None:
    recent = [float(number) for number in range(100)]
    SpikeDetector(CONFIG, recent)
    assert recent == [float(number) for number in range(36, 100)]
