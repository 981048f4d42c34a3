"""Names of a fit run's figures, and the check of the one by which a run stops."""

import pytest
from fitted_models import resolved_config

from clipx.config.fit_inputs import HeadKind
from clipx.config.fit_metrics import (
    METRICS,
    check_metric,
    lower_is_better,
    metric_names,
    variants,
    whole_figure,
)
from clipx.errors import InputError

_TARGETS: dict[str, HeadKind] = {"category": "class", "price": "number", "tags": "labels"}
_BOTH = ("image", "text")


def test_every_target_has_its_figures_for_each_modality_taken_away() -> None:
    names = metric_names(_TARGETS, _BOTH)
    assert len(names) == len(set(names)) == 4 * (1 + sum(len(METRICS[kind]) for kind in _TARGETS.values()))
    assert {"loss", "loss_without_text", "category/accuracy_complete", "price/r2_without_image"} <= set(names)
    assert not [name for name in metric_names(_TARGETS, ("text",)) if "without" in name or "complete" in name]
    assert metric_names(_TARGETS, _BOTH, average=True) == names + [f"ema_{name}" for name in names]


@pytest.mark.parametrize("metric", ["loss", "category/accuracy", "price/r2_without_text", "tags/auroc"])
def test_a_figure_of_the_run_is_taken(metric: str) -> None:
    check_metric(metric, targets=_TARGETS, modalities=_BOTH)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("category/acuracy", "the nearest is category/accuracy"),
        ("mae", "the nearest is price/mae"),
        ("price/accuracy", "the nearest is category/accuracy"),
        ("ema_loss", "the nearest is loss"),
        ("???", "this run has loss, loss_complete"),
    ],
)
def test_another_figure_is_refused_with_the_nearest(metric: str, hint: str) -> None:
    with pytest.raises(InputError) as refused:
        check_metric(metric, targets=_TARGETS, modalities=_BOTH)
    assert f"stop.metric={metric}: expected" in str(refused.value)
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_average_of_the_weights_has_figures_where_it_is_kept() -> None:
    check_metric("ema_category/accuracy", targets=_TARGETS, modalities=_BOTH, average=True)


@pytest.mark.parametrize("name", ["loss", "val/loss", "a/mae_without_image", "ema_loss_complete", "calibration_error"])
def test_errors_are_better_the_lower(name: str) -> None:
    assert lower_is_better(name)


@pytest.mark.parametrize("name", ["category/accuracy", "mae/r2", "loss/auroc", "image_to_text_recall@1"])
def test_scores_are_better_the_higher(name: str) -> None:
    assert not lower_is_better(name)


@pytest.mark.parametrize("figure", ["loss", "category/accuracy", "complete/r2", "a_without_text/mae"])
def test_the_figures_of_complete_rows_belong_to_that_of_all(figure: str) -> None:
    assert [whole_figure(name) for name in variants(figure, _BOTH)] == [figure] * 4
    assert variants(figure, ("text",)) == (figure,)


def test_a_config_refuses_to_stop_by_a_figure_that_it_has_not() -> None:
    targets = {"price": {"type": "number"}}
    average = {"ema": {"decay": 0.9}, "stop": {"metric": "ema_price/r2"}}
    assert resolved_config(targets=targets, **average).stop is not None
    with pytest.raises(InputError, match=r"stop.metric=ema_price/r2: expected .*; the nearest is price/r2"):
        resolved_config(targets=targets, **(average | {"ema": None}))


def test_a_target_whose_loss_would_be_another_figure_is_told_before_training() -> None:
    with pytest.raises(InputError, match=r"the name 's' is taken .* with column: s"):
        resolved_config(targets={"s": {"type": "number", "mean": 0.0, "std": 1.0}})
