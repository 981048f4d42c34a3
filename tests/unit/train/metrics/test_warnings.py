"""Warnings about a run: each at its onset, once, and again only after it has passed."""

from typing import Any

import pytest

from clipx.train.metrics.warnings import Diagnosis

HEALTHY: dict[str, float] = {
    "logit_scale": 20.0,
    "image_cosine": 0.4,
    "text_cosine": 0.5,
    "elapsed_s": 10.0,
    "pause_s": 0.0,
    "samples_per_s": 1000.0,
    "data_wait_max_s": 0.1,
    "data_wait_rank": 1,
    "slowest_s": 3.1,
    "slowest_rank": 2,
    "median_s": 3.0,
    "read_wait_s": 0.0,
    "pillow_images": 0,
    "skipped_steps": 0,
    "bad_samples": 0,
}


def warnings(*changes: dict[str, Any], warmup_steps: int = 100, captions_per_image: int = 1) -> list[list[str]]:
    """What is said of rows, from step 1,000 on, that differ from healthy ones in this."""
    diagnosis = Diagnosis(
        max_logit_scale=100,
        warmup_steps=warmup_steps,
        max_bad_fraction=0.01,
        workers=4,
        hosts=["a", "b", "c"],
        captions_per_image=captions_per_image,
    )
    rows = [{"step": 1000 + 10 * number, "samples_seen": 10_000 * number} for number in range(len(changes))]
    return [diagnosis.look(HEALTHY | row | change) for row, change in zip(rows, changes, strict=True)]


def onsets(*changes: dict[str, Any]) -> list[int]:
    """The rows at which one warning is given."""
    said = warnings(*changes)
    assert all(len(lines) <= 1 for lines in said)
    return [number for number, lines in enumerate(said) if lines]


def the_warning(*changes: dict[str, Any], captions_per_image: int = 1) -> str:
    (line,) = [line for lines in warnings(*changes, captions_per_image=captions_per_image) for line in lines]
    return line


def test_nothing_is_said_of_a_healthy_run_or_of_rows_without_figures() -> None:
    assert onsets(*[{}] * 50) == []
    assert Diagnosis(max_logit_scale=100, warmup_steps=0, max_bad_fraction=0.01, workers=0, hosts=["a"]).look({}) == []


@pytest.mark.parametrize(
    ("bad", "rows", "between", "words"),
    [
        ({"logit_scale": 100.0}, 10, {"logit_scale": 99.5}, "logit_scale stands at its limit, 100"),
        ({"image_cosine": 0.95}, 3, {"image_cosine": 0.85}, "image embeddings are nearly all the same"),
        ({"text_cosine": 0.95}, 3, {"text_cosine": 0.85}, "text embeddings are nearly all the same"),
        ({"data_wait_max_s": 3.0}, 5, {"data_wait_max_s": 1.5}, "rank 1 (b) waits for data 30% of the time"),
        ({"slowest_s": 6.0}, 10, {"slowest_s": 3.5}, "rank 2 (c) is slow: its own work takes 2.00 times"),
    ],
)
def test_each_warning_comes_once_per_onset(
    bad: dict[str, float], rows: int, between: dict[str, float], words: str
) -> None:
    assert onsets(*[bad] * (rows - 1), *[{}] * 20) == []  # too short to mean anything
    assert onsets({}, *[bad] * 30) == [rows]
    assert onsets(*[bad] * rows, between, *[bad] * 30) == [rows - 1]  # it had not passed
    assert onsets(*[bad] * rows, {}, {}, *[bad] * 30) == [rows - 1, 2 * rows + 1]
    assert words in the_warning(*[bad] * rows)


def test_a_value_that_is_not_a_number_is_no_sign_of_health() -> None:
    bad, unknown = {"image_cosine": 0.95}, {"image_cosine": float("nan")}
    assert onsets(*[bad] * 3, unknown, *[bad] * 9) == [2]


def test_embeddings_may_be_alike_before_the_towers_have_learnt() -> None:
    alike = [{"text_cosine": 0.99}] * 3
    assert warnings(*alike, warmup_steps=5000) == [[], [], []]
    assert warnings(*[change | {"step": 400} for change in alike], warmup_steps=10) == [[], [], []]


def test_pauses_are_no_time_in_which_data_is_awaited() -> None:
    assert onsets(*[{"data_wait_max_s": 1.5}] * 9) == []
    assert onsets(*[{"data_wait_max_s": 1.5, "pause_s": 5.0}] * 9) == [4]


@pytest.mark.parametrize(
    ("figures", "cause"),
    [
        ({}, "decoding is too slow; raise data.workers (now 4)"),
        ({"read_wait_s": 20.0}, "loader processes wait for storage 50% of theirs"),
        ({"pillow_images": 2000}, "Pillow decodes 20% of the images"),
        ({"pillow_images": 8000, "select/left_out": 30_000}, "Pillow decodes 20% of the images"),
        ({"pillow_images": 2000, "select/left_out": 30_000}, "decoding is too slow"),
    ],
)
def test_a_starved_loader_is_told_what_it_lacks(figures: dict[str, float], cause: str) -> None:
    assert cause in the_warning(*[{"data_wait_max_s": 3.0, **figures}] * 5)


def test_several_captions_of_a_picture_are_one_picture() -> None:
    starved = [{"data_wait_max_s": 3.0, "pillow_images": 500}] * 5  # of 10,000 pairs a row
    assert "decoding is too slow" in the_warning(*starved)
    assert "Pillow decodes 20% of the images" in the_warning(*starved, captions_per_image=4)


def test_ranks_that_are_slow_in_turn_are_not_one_slow_rank() -> None:
    assert onsets(*[{"slowest_s": 6.0, "slowest_rank": number % 3} for number in range(30)]) == []


def test_clocks_that_have_measured_nothing_name_no_rank() -> None:
    assert onsets(*[{"slowest_s": 0.0, "median_s": 0.0}] * 20) == []


def test_skipped_steps_are_counted_over_the_latest_rows() -> None:
    assert onsets(*[{"skipped_steps": number // 6} for number in range(60)]) == []  # one now and then
    burst = [{"skipped_steps": min(number, 5)} for number in range(20)]
    again = [{"skipped_steps": 5 + number} for number in range(5)]
    assert onsets({}, *burst, *again) == [4, 24]
    assert "3 steps were skipped within 4 rows" in the_warning({}, *burst)


def test_a_run_that_resumes_does_not_count_the_past() -> None:
    assert onsets(*[{"skipped_steps": 50, "bad_samples": 5000}] * 5) == []


def test_bad_samples_are_judged_by_their_share_of_the_latest() -> None:
    steady = [{"bad_samples": 20 * number} for number in range(30)]  # 0.2%
    rising = [{"bad_samples": 580 + 120 * number} for number in range(1, 20)]  # 1.2%
    assert onsets(*steady) == []
    (row,) = onsets(*steady, *rising)
    assert 30 <= row < 36
    assert onsets({}, {"bad_samples": 9, "samples_seen": 100}) == []  # too few to be a share
    assert "1.2% of the latest samples are bad; at 1.0% of all the run ends" in the_warning({}, {"bad_samples": 120})


def test_of_chosen_batches_bad_samples_are_a_share_of_what_was_read() -> None:
    rows = [{"bad_samples": 120 * number, "samples_read": 40_000 * number} for number in range(20)]
    assert onsets(*rows) == []  # 0.3%, and 1.2% of those trained on
    worse = [{"bad_samples": 480 * number, "samples_read": 40_000 * number} for number in range(20)]
    assert "1.2% of the latest samples are bad" in the_warning(*worse)
