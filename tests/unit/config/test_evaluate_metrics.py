"""Names of the figures of a pretraining run's evaluations, and the check of the one by which it stops."""

import pytest
from tiny_clip import tiny_model_config

from clipx.config.data import DataConfig
from clipx.config.evaluate import EvaluateConfig, HeldOutLossConfig, RetrievalConfig, ZeroShotConfig
from clipx.config.evaluate_metrics import check_evaluation_metric
from clipx.config.job import StopConfig
from clipx.config.optim import EmaConfig
from clipx.config.schema import RunConfig
from clipx.errors import InputError

EVALUATIONS: dict[str, EvaluateConfig] = {
    "val": HeldOutLossConfig(data="x", every_steps=10),
    "photos": RetrievalConfig(data="x", every_steps=5),
    "emoji": ZeroShotConfig(data="x", every_steps=5),
    "end": ZeroShotConfig(data="x"),
}


@pytest.mark.parametrize("metric", ["val/loss", "photos/image_to_text_recall@10", "emoji/acc1", "emoji/acc5"])
@pytest.mark.parametrize("average", [False, True])
def test_a_figure_of_the_run_is_taken(metric: str, average: bool) -> None:
    check_evaluation_metric(metric, EVALUATIONS, average=average)
    evaluation, _, figure = metric.partition("/")
    if average:
        check_evaluation_metric(f"{evaluation}/ema_{figure}", EVALUATIONS, average=True)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("loss", "expected EVALUATION/FIGURE; the nearest is val/loss"),
        ("val", "expected EVALUATION/FIGURE; the nearest is val/loss"),
        ("acc1", "expected EVALUATION/FIGURE; the nearest is emoji/acc1"),
        ("???", "expected EVALUATION/FIGURE; this run has val/loss, photos/image_to_text_recall@1"),
        ("vall/loss", "`evaluate` has no 'vall'; the nearest is 'val'"),
        ("coco/loss", "`evaluate` has no 'coco'; this run has val, photos, emoji, end"),
        ("val/los", "evaluate.val gives no figure 'los'; the nearest is val/loss"),
        ("val/acc1", "evaluate.val gives no figure 'acc1'; it gives loss"),
        ("photos/text_to_image_recall@2", "the nearest is photos/text_to_image_recall@"),
        ("val/", "evaluate.val gives no figure ''; it gives loss"),
        ("val/ema_loss", "the run keeps no average of its weights; set ema.decay, or take ema_ away"),
        ("end/acc1", "evaluate.end.every_steps=0 evaluates at the end alone, where nothing is left to stop; set it"),
    ],
)
def test_another_figure_is_refused_with_the_nearest(metric: str, hint: str) -> None:
    with pytest.raises(InputError) as refused:
        check_evaluation_metric(metric, EVALUATIONS, average=False)
    assert str(refused.value).startswith(f"stop.metric={metric}: ")
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_config_refuses_to_stop_by_a_figure_that_it_has_not() -> None:
    def config(metric: str, evaluate: dict[str, EvaluateConfig], ema: EmaConfig | None = None) -> RunConfig:
        return RunConfig(
            run_dir="runs/none",
            steps=1,
            global_batch_size=2,
            data=DataConfig(train=["none.tar"]),
            model=tiny_model_config(),
            evaluate=evaluate,
            ema=ema,
            stop=StopConfig(metric=metric),
        )

    assert config("val/ema_loss", EVALUATIONS, EmaConfig(decay=0.9)).stop == StopConfig(
        metric="val/ema_loss", patience=5
    )
    with pytest.raises(InputError, match=r"stop.metric=val/ema_loss: the run keeps no average"):
        config("val/ema_loss", EVALUATIONS)
    with pytest.raises(
        InputError, match=r"stop.metric=val/loss: the run has no evaluation; add one, e.g. evaluate.val="
    ):
        config("val/loss", {})


def test_a_loss_of_one_pair_says_nothing() -> None:
    def run(pairs: int | None) -> RunConfig:
        return RunConfig(
            run_dir="r",
            steps=1,
            global_batch_size=4,
            data=DataConfig(train=["x"], captions_per_image=4),
            model=tiny_model_config(),
            evaluate={"val": HeldOutLossConfig(data="x", pairs=pairs)},
        )

    with pytest.raises(InputError, match=r"val compares global_batch_size=4 / data.captions_per_image=4 pairs"):
        run(None)
    run(2)


@pytest.mark.parametrize("key", ["cls", "txt; .cls"])
def test_numbers_of_classes_are_no_captions(key: str) -> None:
    """Of a held-out loss; sets for retrieval are no part of the run's shards, and may have captions there."""
    source = {"caption_key": {"json:label": 1, "cls": 2}, "class_names": ["a", "b"]}

    def run(
        data: DataConfig, caption_key: str, kind: type[HeldOutLossConfig | RetrievalConfig] = HeldOutLossConfig
    ) -> RunConfig:
        evaluate = {"val": kind(data="x", caption_key=caption_key), "seen": ZeroShotConfig(data="x")}
        return RunConfig(
            run_dir="r", steps=1, global_batch_size=8, data=data, model=tiny_model_config(), evaluate=evaluate
        )

    with pytest.raises(
        InputError, match=r"evaluate\.val\.caption_key=.*cls holds the numbers of class_names of source"
    ):
        run(DataConfig(train=["x"], **source), key)  # type: ignore[arg-type]
    run(DataConfig(train=["x"], **source), "txt")  # type: ignore[arg-type]
    run(DataConfig(train=["x"], **source), key, RetrievalConfig)  # type: ignore[arg-type]
    run(DataConfig(train=["x"], caption_key="cls"), "cls")
