"""Wilson's interval, against the equation that defines its ends and against a table."""

import math

import pytest

from clipx.report.intervals import Interval, wilson
from clipx.report.metric_names import main_metric, percent
from clipx.report.recorded import Evaluated
from clipx.report.scores import SetSize, interval


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (904, 960), (1, 1)])
def test_the_ends_are_where_the_share_is_z_deviations_away(hits: int, count: int) -> None:
    share = hits / count
    low, high = wilson(share, count)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / count))


def test_a_published_value() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263
    low, high = wilson(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def found(metric: str, share: float, size: SetSize | None, **intervals: tuple[float, float]) -> Interval | None:
    return interval(metric, Evaluated(step=1, scores={metric: share}, intervals=intervals), size)


def test_only_shares_of_known_sets_have_one() -> None:
    size = SetSize(pictures=100, texts=400)
    assert found("acc1", 0.5, size) == wilson(0.5, 100)
    assert found("ema_acc1", 0.5, size) == wilson(0.5, 100)
    assert found("text_to_image_recall@1", 0.5, size) == wilson(0.5, 400)
    assert found("image_to_text_recall@5", 0.5, size) == wilson(0.5, 100)
    for metric, share in (("mean_per_class_recall", 0.5), ("acc1", math.nan), ("acc1", 1.5)):
        assert found(metric, share, size) is None
    assert found("acc1", 0.5, None) is None
    assert found("text_to_image_recall@1", 0.5, SetSize(10)) is None


def test_an_interval_that_a_run_has_written_comes_first() -> None:
    assert found("acc1", 0.5, SetSize(100), acc1=(0.4, 0.7)) == (0.4, 0.7)
    assert found("acc1", 0.5, None, acc1=(0.4, 0.7)) == (0.4, 0.7)


def test_the_metric_that_stands_for_an_evaluation() -> None:
    assert main_metric({"acc5": 1.0, "acc1": 0.5}) == "acc1"
    assert main_metric({"acc1": 0.5, "ema_acc1": 0.6}) == "ema_acc1"
    assert main_metric({"other": 0.5}) == "other"
    assert main_metric({}) is None
    assert [percent(0.94166), percent(math.nan)] == ["94.17%", "none"]
