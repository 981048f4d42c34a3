"""The evaluations of a fit run on a page: which is the best, and how figures are written."""

import re

from clipx.report.metric_names import is_share, label, main_metric, series, written
from clipx.report.recorded import Evaluated
from clipx.report.target_scores import target_scores

FIRST = {"loss": 2.0, "kind/accuracy": 0.75, "kind/accuracy_without_image": 0.5, "price/mae": 3.0, "price/r2": 0.5}
LAST = {"loss": 1.5, "kind/accuracy": 0.25, "kind/accuracy_without_image": 0.5, "price/mae": 12.5, "price/r2": 0.75}


def results() -> list[Evaluated]:
    trivial = {"kind/accuracy": 0.125}
    return [Evaluated(step=4, scores=FIRST, trivial=trivial), Evaluated(step=8, scores=LAST, trivial=trivial)]


def test_the_best_is_the_lowest_error_and_the_highest_score() -> None:
    cells = re.findall(r"<tr>(.*?)</tr>", target_scores("val", results()))
    rows = {row[0]: row[1:] for row in (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", cell) for cell in cells)}
    assert rows["figure"] == ["trivial", "all rows", "all inputs", "without image", "best", "at step"]
    assert rows["loss"] == ["", "1.5", "", "", "1.5", "8"]
    assert rows["kind accuracy"] == ["12.50%", "25.00%", "", "50.00%", "75.00%", "4"]
    assert rows["price mae"] == ["", "12.5", "", "", "3", "4"]
    assert rows["price r2"] == ["", "0.75", "", "", "0.75", "8"]


def test_only_shares_are_percent() -> None:
    assert [is_share(name) for name in ("acc1", "a/accuracy_without_text", "ema_a/macro_f1")] == [True] * 3
    assert [is_share(name) for name in ("loss", "ema_loss_without_image", "a/mae", "accuracy/r2")] == [False] * 4
    assert (written("a/accuracy", 0.5), written("a/mae", 1234.5678)) == ("50.00%", "1235")
    assert series(results(), "kind/accuracy") == [(4.0, 75.0), (8.0, 25.0)]
    assert series(results(), "price/mae") == [(4.0, 3.0), (8.0, 12.5)]


def test_metrics_of_targets_are_named_as_people_say_them() -> None:
    assert label("my_kind/macro_f1_without_image") == "my_kind macro f1, without image"
    assert label("ema_loss") == "loss, averaged weights"
    assert main_metric(LAST) == "kind/accuracy"
